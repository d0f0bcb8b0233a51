"""Plug-ins: names mean what they meant yesterday, and a broken plug-in harms nobody but itself."""

import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

import lamost_lsf
from lamost_lsf import plugins
from lamost_lsf.errors import PluginLookupError, PluginWarning
from lamost_lsf.plugins import hookimpl
from lamost_lsf.plugins.loading import HOOKS
from lamost_lsf.plugins.manager import PluginRegistry
from lamost_lsf.plugins.records import PluginError, PluginProblem, fold_name, valid_name

HERE = Path(__file__).parent
CENTERS = ["centroid", "fourier", "gauss", "half", "max", "sersic", "zero"]
FITTERS = ["legendre", "polynomial"]


# -- two real distributions, installed by pip ------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Folders with the good and the broken distribution, as pip installs them."""
    root = tmp_path_factory.mktemp("plugins")
    folders = {}
    for name in ("good", "broken"):
        # Building leaves files beside the sources.
        source = shutil.copytree(HERE / "plugins" / f"{name}_plugin", root / f"{name}_source")
        folders[name] = root / name
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-index", "--disable-pip-version-check", "--target", folders[name], source]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folders


def python(code, *folders, check=True, **environment):
    """Run code in a fresh process with folders on its path; its last expression to print is JSON."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LAMOST_LSF_")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (*folders, HERE.parent)))
    env.update(environment)
    preamble = "import json, sys, warnings\n"
    command = [sys.executable, "-c", preamble + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return done


LIST = """
    from lamost_lsf.plugins import get_center, list_plugins
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        get_center("gauss"); table = list_plugins(); get_center("gauss")
    rows = [dict(zip(table.colnames, map(str, row))) for row in table]
    told = [(w.category.__name__, str(w.message), w.filename) for w in caught]
    print(json.dumps([rows, told]))
"""


def test_good_plugin_installed_by_pip_is_listed_with_its_distribution_and_version(site):
    rows, told = python(LIST, site["good"])
    assert told == []
    mine = {row["qualified_name"]: row for row in rows if row["origin"] == "lsf-good-plugin"}
    assert sorted(mine) == ["good:bisector", "good:chebyshev", "good:contrast"]
    assert {row["version"] for row in mine.values()} == {"1.2.3"}
    assert {row["status"] for row in mine.values()} == {"ok"}
    assert mine["good:bisector"]["summary"].startswith("Mean of the line's bisector")
    assert mine["good:chebyshev"]["kind"] == "wavelength_fitter"


def test_good_plugin_keeps_the_contract_that_ships_with_the_package(site):
    code = """
        from lamost_lsf.testing import check_plugin
        from lamost_lsf.plugins import plugin_provenance, get_center
        warnings.simplefilter("error")
        check_plugin("good")
        record = plugin_provenance(get_center("bisector"))
        assert get_center(record.name) is get_center("GOOD:Bisector")
        print(json.dumps([record.name, record.distribution, record.version]))
    """
    assert python(code, site["good"]) == ["good:bisector", "lsf-good-plugin", "1.2.3"]


def test_nothing_is_imported_before_the_first_look_up(site):
    code = """
        import lamost_lsf.plugins as plugins
        names = ("lsf_good_plugin", "lamost_lsf.centers", "lamost_lsf.wavelength", "torch")
        before = [name in sys.modules for name in names]
        plugins.get_center("zero")
        print(json.dumps([before, [name in sys.modules for name in names]]))
    """
    before, after = python(code, site["good"])
    assert before == [False] * 4
    assert after == [True, True, True, False]


def test_every_fault_of_the_broken_plugin_is_listed_and_warned_once(site):
    rows, told = python(LIST, site["good"], site["broken"])
    errors = {}
    for row in rows:
        if row["status"] == "error":
            assert (row["origin"], row["version"]) == ("lsf-broken-plugin", "0.9")
            errors.setdefault(row["qualified_name"], []).append(row["message"])
    expected = {
        "broken-import": ["ModuleNotFoundError"],
        "broken-exit": ["SystemExit: this script takes two arguments"],
        "broken-target": ["nothing_of_that_name"],
        "broken-hooks": [
            "lamost_lsf_centers is not marked",
            "lamost_lsf_centres is not a hook.*did you mean lamost_lsf_centers",
            "lamost_lsf_fitters is not a hook",
            "callable without arguments.*config",
        ],
        "broken-call": ["raised RuntimeError: cannot read the configuration"],
        "broken-type": ["not list", "not NoneType"],
        "broken-names": ["'FIRST' comes twice", "''", "'a:b'", "not 3", "'number'.*int", "'short'.*error"],
        "broken-empty": ["no hook"],
    }
    assert sorted(errors) == sorted(expected)
    for name, patterns in expected.items():
        assert len(errors[name]) == len(patterns), errors[name]
        for pattern, message in zip(patterns, errors[name]):
            assert re.search(pattern, message), (pattern, message)
    shadowed = {row["qualified_name"] for row in rows if row["status"] == "shadowed"}
    assert shadowed == {"broken-names:gauss", "broken-names:bisector", "good:bisector"}
    # One warning for each error and each shadowed name, though there were three look-ups.
    assert {category for category, _, _ in told} == {"PluginWarning"}
    assert len(told) == sum(map(len, errors.values())) + len(shadowed)
    assert all("lsf-broken-plugin 0.9" in text for _, text, _ in told if "'good'" not in text)
    assert {where for _, _, where in told} == {"<string>"}  # the caller, not the package


def test_broken_plugin_breaks_nobody_else(site):
    code = """
        import numpy as np
        from lamost_lsf.plugins import apply_center, get_center, get_wavelength_fitter, list_plugins
        warnings.simplefilter("ignore")
        x = np.linspace(-8, 8, 161)
        line = np.exp(-0.5 * (x - 0.25) ** 2)
        centers = [float(apply_center(n, x, line)) for n in ("gauss", "good:bisector", "contrast", "first")]
        origin = [get_center(n).__module__ for n in ("gauss", "builtin:gauss", "broken-names:gauss")]
        fitters = [get_wavelength_fitter(n).__module__ for n in ("chebyshev", "straight")]
        table = list_plugins()
        good = sorted(map(str, table["name"][table["origin"] == "builtin"]))
        print(json.dumps([centers, origin, fitters, good]))
    """
    centers, origin, fitters, good = python(code, site["good"], site["broken"])
    assert np.allclose(centers[:3], 0.25, atol=2e-3)
    assert centers[3] == -8.0  # the broken plug-in's one sound centre
    assert origin[0] == origin[1] == "lamost_lsf.centers.gauss"
    assert origin[2] == "lsf_broken_plugin.names"
    assert fitters == ["lsf_good_plugin", "lsf_broken_plugin.raises"]
    assert good == sorted(CENTERS + FITTERS)


@pytest.mark.parametrize("first", ["good", "broken"])
def test_what_a_name_means_does_not_depend_on_the_order_of_installation(site, first):
    order = [site[first], site["broken" if first == "good" else "good"]]
    code = """
        from lamost_lsf.plugins import get_center
        warnings.simplefilter("ignore")
        try:
            get_center("bisector")
        except LookupError as error:
            print(json.dumps([type(error).__name__, str(error), get_center("good:bisector").__module__]))
    """
    kind, message, module = python(code, *order)
    assert kind == "PluginLookupError"
    assert "ambiguous" in message
    assert "broken-names:bisector, good:bisector" in message
    assert module == "lsf_good_plugin"


def test_disabled_plugins_are_not_even_imported(site):
    code = """
        from lamost_lsf.plugins import get_center, list_plugins
        warnings.simplefilter("error")
        get_center("gauss")
        table = list_plugins()
        modules = [m for m in sys.modules if m.startswith(("lsf_broken", "lsf_good"))]
        try:
            get_center("bisector")
        except LookupError as error:
            text = str(error)
        print(json.dumps([modules, sorted(set(map(str, table["status"]))), text]))
    """
    modules, status, text = python(code, site["good"], site["broken"], LAMOST_LSF_DISABLED_PLUGINS="all")
    assert modules == []
    assert status == ["disabled", "ok"]
    assert re.search(r"Disabled by LAMOST_LSF_DISABLED_PLUGINS: .*good", text)


def test_disabling_by_entry_point_name_leaves_the_others(site):
    names = "Broken-Import, broken-exit,broken-target,broken-hooks,broken-call,broken-type,broken-empty,broken-names"
    rows, told = python(LIST, site["good"], site["broken"], LAMOST_LSF_DISABLED_PLUGINS=names)
    assert told == []
    assert sum(row["status"] == "disabled" for row in rows) == 8
    assert {row["name"] for row in rows if row["origin"] == "lsf-good-plugin" and row["status"] == "ok"} == {
        "bisector",
        "contrast",
        "chebyshev",
    }


def test_strict_mode_raises_with_all_problems_at_every_look_up(site):
    code = """
        from lamost_lsf.plugins import PluginError, get_center, list_plugins, plugin_problems
        from lamost_lsf.errors import LamostLSFError
        warnings.simplefilter("error")
        texts = []
        for call in (lambda: get_center("gauss"), list_plugins, lambda: get_center("gauss")):
            try:
                call()
            except LamostLSFError as error:
                assert isinstance(error, PluginError) and error.problems == plugin_problems()
                texts.append(str(error))
        print(json.dumps(texts))
    """
    texts = python(code, site["broken"], LAMOST_LSF_STRICT_PLUGINS="1")
    assert len(texts) == 3
    assert "broken-import" in texts[0]
    assert "this script takes two arguments" in texts[0]
    # The good plug-in alone is no reason to raise.
    code = "from lamost_lsf.plugins import get_center; print(json.dumps(get_center('bisector').__name__))"
    assert python(code, site["good"], LAMOST_LSF_STRICT_PLUGINS="1") == "bisector"


# -- distributions made up for one test -----------------------------------------------------------------


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Write an installed distribution: a module and its record, as pip would leave them."""
    count = iter(range(100))
    for variable in ("LAMOST_LSF_DISABLED_PLUGINS", "LAMOST_LSF_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    before = set(sys.modules)

    def make(distribution, code, *, entry="one", version="1.0", points=None, raw=None):
        number = next(count)
        folder = tmp_path / f"site{number}"
        record = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        record.mkdir(parents=True)
        module = f"lsf_made_up_{tmp_path.name.replace('-', '_')}_{number}"
        (folder / f"{module}.py").write_text("from lamost_lsf.plugins import hookimpl\n" + textwrap.dedent(code))
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = points or [f"{entry} = {module}"]
        text = "[lamost_lsf]\n" + "\n".join(line.replace("MODULE", module) for line in lines) + "\n"
        (record / "entry_points.txt").write_bytes(raw if raw is not None else text.encode())
        monkeypatch.syspath_prepend(folder)
        return module

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("lsf_made_up_"):
            del sys.modules[name]


def centers(names):
    body = ", ".join(f"{name!r}: lambda x, profile, *, error=None, mask=None: x[0]" for name in names)
    return f"@hookimpl\ndef lamost_lsf_centers():\n    return {{{body}}}\n"


def quiet(registry, method, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return getattr(registry, method)(*arguments)


@pytest.mark.parametrize(
    "exception",
    ["SystemExit(3)", "GeneratorExit()", "MemoryError()", "BaseException('odd')", "RecursionError()"],
)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_whatever_a_plugin_raises_is_its_own_affair(install, exception, where):
    body = f"raise {exception}"
    code = body if where == "import" else f"@hookimpl\ndef lamost_lsf_centers():\n    {body}\n"
    install("dist-bad", code, entry="bad")
    install("dist-fine", centers(["fine"]), entry="fine")
    registry = PluginRegistry()
    with pytest.warns(PluginWarning, match=rf"'bad' \(dist-bad 1.0\).*{exception.partition('(')[0]}"):
        assert registry.find("center", "fine").distribution == "dist-fine"
    assert [problem.kind for problem in registry.problems] == ["import" if where == "import" else "call"]


def test_keyboard_interrupt_is_the_users_and_loading_can_start_again(install):
    install("dist-slow", "import lamost_lsf\nif not hasattr(lamost_lsf, 'again'):\n    raise KeyboardInterrupt\n")
    registry = PluginRegistry()
    with pytest.raises(KeyboardInterrupt):
        registry.find("center", "gauss")
    try:
        lamost_lsf.again = True
        assert quiet(registry, "find", "center", "gauss").builtin
        assert len([e for e in registry._entries if e.name == "gauss"]) == 1
    finally:
        del lamost_lsf.again


def test_exception_that_cannot_be_printed(install):
    code = """
        class Mute(Exception):
            def __str__(self):
                raise ValueError("no words")
        raise Mute
    """
    install("dist-mute", code)
    registry = PluginRegistry()
    with pytest.warns(PluginWarning, match="Mute"):
        registry.find("center", "gauss")


def test_objects_that_resist_examination(install):
    code = """
        class Evil:
            def __dir__(self):
                raise RuntimeError("do not look")
        class Odd:
            @property
            def __signature__(self):
                raise SystemExit("no signature")
            def __call__(self, x, profile, *, error=None, mask=None):
                return x[0]
        class Wordless:
            def __call__(self, x, profile, *, error=None, mask=None):
                return x[0]
            @property
            def __doc__(self):
                raise RuntimeError("no words")
        class Strange(dict):
            def items(self):
                raise OSError("disk on fire")
        evil = Evil()
        class Plugin:
            @hookimpl
            def lamost_lsf_centers(self):
                return {"odd": Odd(), "plain": Wordless()}
            @hookimpl
            def lamost_lsf_wavelength_fitters(self):
                return Strange()
        plugin = Plugin()
        class Lazy:
            @property
            def lamost_lsf_centers(self):
                raise SystemExit("not today")
            @property
            def something_else(self):
                raise SystemExit("nor that")
        lazy = Lazy()
    """
    install("dist-odd", code, points=["evil = MODULE:evil", "odd = MODULE:plugin", "lazy = MODULE:lazy"])
    registry = PluginRegistry()
    assert quiet(registry, "find", "center", "plain").plugin == "odd"
    text = "\n".join(map(str, registry.problems))
    assert "do not look" in text
    assert "disk on fire" in text
    assert "no signature" in text
    assert "lamost_lsf_centers: SystemExit: not today" in text
    assert "nor that" not in text
    assert isinstance(quiet(registry, "table"), Table)


def test_a_class_instead_of_an_instance_is_a_fault_with_a_reason(install):
    code = "class Plugin:\n    @hookimpl\n    def lamost_lsf_centers(self):\n        return {}\n"
    install("dist-class", code, points=["one = MODULE:Plugin"])
    registry = PluginRegistry()
    with pytest.warns(PluginWarning, match="without arguments.*self"):
        registry.find("center", "gauss")


HOOK = "@hookimpl\ndef lamost_lsf_centers():\n    return "


@pytest.mark.parametrize(
    ("code", "kind", "match"),
    [
        ("", "hook", "has no hook; the hooks are lamost_lsf_centers and lamost_lsf_wavelength_fitters"),
        ("@hookimpl\ndef lamost_lsf_centres(): ...", "hook", "did you mean lamost_lsf_centers"),
        ("@hookimpl\ndef centers(): ...", "hook", "centers is not a hook of this version"),
        ("def lamost_lsf_spectra(): ...", "hook", "lamost_lsf_spectra is not a hook of this version"),
        ("def lamost_lsf_centers(): ...", "hook", "is not marked: write @lamost_lsf.plugins.hookimpl"),
        ("lamost_lsf_centers = {}", "hook", "has no hook"),
        (HOOK + "None", "type", "must return a mapping of names to callables, not NoneType"),
        (HOOK + "{'a', 'b'}", "type", "must return a mapping of names to callables, not set"),
        (HOOK + "{3: print}", "name", "must be a str, not 3 of type int"),
        (HOOK + "{'': print}", "name", "'' is not a name for a center"),
        (HOOK + "{'two words': print}", "name", "'two words' is not a name for a center"),
        (HOOK + "{'x': 'gauss'}", "type", "center 'x' must be callable, not of type str"),
        (HOOK + "{'x': lambda x: x}", "type", r"center 'x' must be callable as \(x, profile"),
        (centers(["Pé", "pe"]), "duplicate", "center 'pe' comes twice; only the first is used"),
    ],
)
def test_each_fault_has_its_kind_and_a_message_that_says_what_to_do(install, code, kind, match):
    install("dist-bad", code)
    registry = PluginRegistry()
    with pytest.warns(PluginWarning, match=match):
        assert registry.find("center", "gauss").builtin
    (problem,) = registry.problems
    assert (problem.kind, problem.plugin, problem.distribution, problem.version) == (kind, "one", "dist-bad", "1.0")
    table = registry.table()
    assert list(table["message"][table["status"] == "error"]) == [problem.message]


def test_functions_without_a_signature_are_given_the_benefit_of_the_doubt(install):
    install("dist-c", HOOK + "{'c': min}")  # compiled, says nothing of its arguments
    assert PluginRegistry().find("center", "c").obj is min


def test_hook_wrapper_is_refused_because_it_would_change_other_names(install):
    code = "@hookimpl(wrapper=True)\ndef lamost_lsf_centers():\n    result = yield\n    return []\n"
    install("dist-wrapper", code)
    registry = PluginRegistry()
    with pytest.warns(PluginWarning, match="wrapper"):
        assert registry.find("center", "gauss").builtin


def test_hook_of_a_later_version_may_be_marked_optional(install):
    code = centers(["fine"]) + "@hookimpl(optionalhook=True)\ndef lamost_lsf_instruments():\n    return {}\n"
    install("dist-later", code)
    registry = PluginRegistry()
    assert registry.find("center", "fine").version == "1.0"
    assert registry.problems == ()


def test_hook_under_another_function_name(install):
    code = centers(["fine"]).replace("@hookimpl", "@hookimpl(specname='lamost_lsf_centers')")
    install("dist-spec", code.replace("def lamost_lsf_centers", "def my_centers"))
    assert PluginRegistry().find("center", "fine").plugin == "one"


def test_two_distributions_with_one_entry_point_name(install):
    install("dist-a", centers(["left", "both"]), entry="same")
    install("dist-b", centers(["right", "both"]), entry="same")
    registry = PluginRegistry()
    assert quiet(registry, "find", "center", "same:left").distribution == "dist-a"
    assert registry.find("center", "right").distribution == "dist-b"
    with pytest.raises(PluginLookupError, match=r"ambiguous.*same@dist-a:both, same@dist-b:both"):
        registry.find("center", "same:both")
    for distribution in ("dist-a", "dist-b"):
        entry = registry.find("center", f"SAME@{distribution}:Both")
        assert entry.distribution == distribution
        assert registry.find("center", entry.qualified_name) is entry


def test_nobody_can_pose_as_a_builtin(install):
    install("dist-posing", centers(["gauss", "extra"]), entry="builtin")
    registry = PluginRegistry()
    assert quiet(registry, "find", "center", "builtin:gauss").builtin
    with pytest.raises(PluginLookupError):
        registry.find("center", "builtin:extra")
    assert registry.find("center", "builtin@dist-posing:gauss").distribution == "dist-posing"
    assert registry.find("center", "extra").qualified_name == "builtin@dist-posing:extra"


def test_two_entry_points_for_one_module_and_entry_points_of_one_name(install):
    install("dist-twice", centers(["fine"]), points=["a = MODULE", "b = MODULE"])
    install("dist-double", centers(["other"]), points=["c = MODULE", "C = MODULE"])
    install("dist-colon", centers(["third"]), points=["d:e = MODULE"])
    registry = PluginRegistry()
    assert quiet(registry, "find", "center", "fine").plugin == "a"
    problems = {(p.plugin, p.kind) for p in registry.problems}
    assert problems == {("b", "hook"), ("c", "duplicate"), ("C", "duplicate"), ("d:e", "name")}


def test_first_copy_of_a_distribution_on_the_path_is_the_one_that_counts(install):
    install("dist-copy", centers(["old"]), version="1.0")
    install("Dist-Copy", centers(["new"]), version="2.0")  # put before the other
    registry = PluginRegistry()
    assert registry.find("center", "new").version == "2.0"
    with pytest.raises(PluginLookupError):
        registry.find("center", "old")


@pytest.mark.parametrize("raw", [b"[lamost_lsf]\nno equals sign here\n", b"[lamost_lsf]\n\xff\xfe = broken\n"])
def test_damaged_records_of_a_distribution_hide_no_other(install, raw):
    install("dist-damaged", "", raw=raw)
    install("dist-fine", centers(["fine"]), entry="fine")
    assert PluginRegistry().find("center", "fine").distribution == "dist-fine"


def test_invalid_entry_point_value(install):
    install("dist-value", "", points=["odd = not a module!"])
    registry = PluginRegistry()
    with pytest.warns(PluginWarning, match="cannot load not a module!"):
        registry.find("center", "gauss")


def test_plugin_may_look_names_up_while_it_is_imported(install):
    code = "from lamost_lsf.plugins import get_center\nbase = get_center('gauss')\n" + centers(["fine"])
    module = install("dist-inner", code)
    previous = plugins._registry
    try:
        plugins._registry = PluginRegistry()
        assert plugins.get_center("fine") is not None
        assert sys.modules[module].base is plugins.get_center("gauss")
    finally:
        plugins._registry = previous


def test_threads_load_a_plugin_once(install):
    code = "import time\ncalls = []\n" + centers(["fine"]).replace(
        "    return", "    calls.append(1)\n    time.sleep(0.05)\n    return"
    )
    module = install("dist-thread", code)
    registry = PluginRegistry()
    found = []
    threads = [threading.Thread(target=lambda: found.append(registry.find("center", "fine"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert sys.modules[module].calls == [1]


def test_reload_finds_what_was_installed_since(install, monkeypatch):
    registry = PluginRegistry()
    with pytest.raises(PluginLookupError):
        registry.find("center", "late")
    install("dist-late", centers(["late"]))
    with pytest.raises(PluginLookupError):
        registry.find("center", "late")
    registry.reload()
    assert registry.find("center", "late").distribution == "dist-late"
    monkeypatch.setenv("LAMOST_LSF_DISABLED_PLUGINS", "one@dist-late")
    registry.reload()
    with pytest.raises(PluginLookupError, match="Disabled"):
        registry.find("center", "late")


def test_warnings_as_errors_stop_the_first_look_up_only(install):
    install("dist-bad", "raise ImportError('gone')")
    registry = PluginRegistry()
    with pytest.raises(PluginWarning, match="gone"):
        registry.find("center", "gauss")
    assert registry.find("center", "gauss").builtin


def test_builtins_that_do_not_load_are_reported_like_anybody(install):
    registry = PluginRegistry(builtins=("lamost_lsf.no_such_module", "lamost_lsf.wavelength"))
    with pytest.warns(PluginWarning, match="no_such_module"):
        assert registry.find("wavelength_fitter", "legendre").builtin
    with pytest.raises(PluginLookupError, match=r"(?s)Available: none.*no_such_module"):
        registry.find("center", "gauss")


# -- look-up of the built-ins ------------------------------------------------------------------------------


def test_builtins_register_through_the_hooks_of_third_parties():
    table = plugins.list_plugins()
    assert table.colnames == [
        *("kind", "name", "qualified_name", "origin"),
        *("version", "status", "message", "summary"),
    ]
    own = table[table["origin"] == "builtin"]
    assert sorted(own["name"][own["kind"] == "center"]) == CENTERS
    assert sorted(own["name"][own["kind"] == "wavelength_fitter"]) == FITTERS
    assert set(own["status"]) == {"ok"}
    assert set(own["version"]) == {lamost_lsf.__version__}
    assert all(own["summary"])
    for row in own:
        assert row["qualified_name"] == f"builtin:{row['name']}"


def test_empty_registry_gives_an_empty_table(install, monkeypatch):
    monkeypatch.setenv("LAMOST_LSF_DISABLED_PLUGINS", "all")
    table = PluginRegistry(builtins=()).table()
    assert len(table[table["status"] == "ok"]) == 0
    assert "summary" in table.colnames


@pytest.mark.parametrize("name", ["Sersic", "SÉRSIC", "sérsic", "se\u0301rsic", " sersic ", "builtin:Sérsic"])
def test_case_and_accents_of_a_name_do_not_matter(name):
    assert plugins.get_center(name) is plugins.get_center("sersic")


@given(st.text())
def test_folding_a_name_twice_changes_nothing_and_case_never_matters(name):
    folded = fold_name(name)
    assert fold_name(folded) == folded
    if name.isascii():
        assert fold_name(name.upper()) == fold_name(name.lower()) == name.lower().strip()


@given(st.text(alphabet="abcXYZ019_.+-:@ /é", max_size=6))
def test_valid_names_never_hold_a_separator(name):
    if valid_name(fold_name(name)):
        assert not set(":@ /") & set(fold_name(name))


def test_callables_pass_through():
    def mine(x, profile, *, error=None, mask=None):
        return 0.0

    assert plugins.get_center(mine) is mine
    assert plugins.get_wavelength_fitter(mine) is mine


@pytest.mark.parametrize("bad", [None, 3, ["gauss"], b"gauss"])
def test_neither_name_nor_callable(bad):
    with pytest.raises(TypeError, match="name or a callable, not"):
        plugins.get_center(bad)
    with pytest.raises(TypeError, match="name or a callable, not"):
        plugins.get_wavelength_fitter(bad)
    with pytest.raises(TypeError, match="name or a callable"):
        plugins.plugin_provenance(bad)


def test_unknown_name_says_what_is_close_and_what_there_is():
    with pytest.raises(PluginLookupError) as caught:
        plugins.get_center("serzic")
    text = str(caught.value)
    assert "no center is named 'serzic'; did you mean 'sersic'?" in text
    assert all(name in text for name in CENTERS)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(PluginLookupError, match="Available: legendre, polynomial"):
        plugins.get_wavelength_fitter("")
    with pytest.raises(PluginLookupError, match="is a wavelength fitter: use get_wavelength_fitter"):
        plugins.get_center("legendre")
    with pytest.raises(PluginLookupError, match="no center is named 'other:gauss'; did you mean"):
        plugins.get_center("other:gauss")


def test_strict_variable_takes_yes_or_no_only(install, monkeypatch):
    install("dist-bad", "raise ImportError('gone')")
    monkeypatch.setenv("LAMOST_LSF_STRICT_PLUGINS", "perhaps")
    registry = PluginRegistry()
    with pytest.raises(ValueError, match="LAMOST_LSF_STRICT_PLUGINS must be 1 or 0, got 'perhaps'"):
        registry.find("center", "gauss")
    monkeypatch.setenv("LAMOST_LSF_STRICT_PLUGINS", "yes")
    with pytest.raises(PluginError, match="gone"):
        registry.find("center", "gauss")
    monkeypatch.setenv("LAMOST_LSF_STRICT_PLUGINS", "0")
    with pytest.warns(PluginWarning, match="gone"):
        registry.find("center", "gauss")


# -- provenance ---------------------------------------------------------------------------------------------


def test_provenance_of_a_builtin_by_name_and_by_object():
    record = plugins.plugin_provenance("GAUSS")
    assert (record.name, record.distribution, record.version) == ("gauss", "lamost-lsf", lamost_lsf.__version__)
    assert plugins.plugin_provenance(plugins.get_center("gauss")) == record
    assert plugins.plugin_provenance(plugins.get_wavelength_fitter("legendre")).name == "legendre"
    assert plugins.get_center(record.name) is plugins.get_center("gauss")
    assert str(record) == f"gauss (lamost-lsf {lamost_lsf.__version__})"


def test_provenance_of_any_callable():
    def local(x, profile, *, error=None, mask=None):
        return 0.0

    record = plugins.plugin_provenance(local)
    assert record.name.endswith(".local")
    assert record.name.startswith(__name__)
    assert record.distribution is None
    assert str(record) == record.name
    record = plugins.plugin_provenance(np.median)
    assert (record.name, record.distribution, record.version) == ("numpy.median", "numpy", np.__version__)
    partial = plugins.plugin_provenance(functools.partial(np.median, axis=0))
    assert (partial.name, partial.distribution) == ("functools.partial(numpy.median)", "numpy")
    assert plugins.plugin_provenance(Mine.Estimator()).name == f"{__name__}.Mine.Estimator"
    own = plugins.plugin_provenance(lamost_lsf.errors.PluginWarning)
    assert (own.distribution, own.version) == ("lamost-lsf", lamost_lsf.__version__)


def test_provenance_of_a_name_that_means_a_centre_and_a_fitter(install):
    install("dist-a", centers(["spline"]), entry="a")
    fitter = "lambda pixel, wavelength, *, error=None, degree=5, domain: None"
    install(
        "dist-b",
        f"@hookimpl\ndef lamost_lsf_wavelength_fitters():\n    return {{'spline': {fitter}}}\n",
        entry="b",
    )
    registry = PluginRegistry()
    with pytest.raises(ValueError, match="kind="):
        registry.provenance("spline")
    assert registry.provenance("spline", "center").name == "a:spline"
    assert registry.provenance("spline", "wavelength_fitter").name == "b:spline"
    with pytest.raises(ValueError, match="kind must be one of center, wavelength_fitter"):
        registry.provenance("spline", "centre")
    with pytest.raises(PluginLookupError):
        registry.provenance("no such name")


def test_bound_methods_are_recognised(install):
    code = """
        class Family:
            def half(self, x, profile, *, error=None, mask=None):
                return x[0]
        family = Family()
        @hookimpl
        def lamost_lsf_centers():
            return {"method": family.half}
    """
    module = install("dist-method", code)
    registry = PluginRegistry()
    registry.find("center", "method")
    assert registry.provenance(sys.modules[module].family.half).name == "one:method"
    assert registry.provenance(sys.modules[module].Family().half).name != "one:method"


def test_problems_and_errors_survive_pickling_between_processes():
    problem = PluginProblem("import", "one", "dist", "1.0", "gone")
    again = pickle.loads(pickle.dumps(PluginError([problem])))
    assert again.problems == (problem,)
    assert str(again) == "plug-in 'one' (dist 1.0): gone"
    assert str(PluginProblem("call", "two", None, None, "x")) == "plug-in 'two' (registered in this process): x"


# -- plug-ins without an entry point -----------------------------------------------------------------------


class Mine:
    def __init__(self, result=None):
        self.result = {"mine": self.first} if result is None else result

    @staticmethod
    def first(x, profile, *, error=None, mask=None):
        """Position of the first sample."""
        return x[0]

    class Estimator:
        def __call__(self, x, profile, *, error=None, mask=None):
            return x[0]

    @hookimpl
    def lamost_lsf_centers(self):
        return self.result


def test_register_and_unregister():
    name = plugins.register(Mine(), name="Müne")
    try:
        assert name == "mune"
        assert plugins.get_center("mine") is plugins.get_center("MÜNE:mine") is Mine.first
        assert plugins.plugin_provenance("mine").name == "mune:mine"
        table = plugins.list_plugins()
        assert table["origin"][table["name"] == "mine"][0] == "in-process"
        plugins.reload_plugins()  # forgets what is installed, not what was given
        assert plugins.get_center("mine") is Mine.first
        with pytest.raises(ValueError, match="already"):
            plugins.register(Mine(), name="mune")
    finally:
        plugins.unregister("Mune")
    with pytest.raises(PluginLookupError, match="no center is named"):
        plugins.get_center("mine")
    with pytest.raises(PluginLookupError, match="registered in this process"):
        plugins.unregister("mune")


def test_partial_functions_and_static_calls_are_centres():
    class Static:
        __call__ = staticmethod(Mine.first)

    registry = PluginRegistry()
    registry.register(Mine({"partial": functools.partial(Mine.first), "static": Static()}), name="forms")
    table = registry.table()
    assert table["summary"][table["name"] == "partial"][0] == "Position of the first sample."
    assert registry.find("center", "static").status == "ok"


def test_default_name_of_a_registered_plugin():
    registry = PluginRegistry()
    assert registry.register(Mine()) == "mine"
    assert registry.find("center", "mine:mine").obj is Mine.first
    registry.unregister("mine")


def test_register_refuses_a_faulty_plugin_at_once(monkeypatch):
    registry = PluginRegistry()
    for result in ({"a:b": Mine.first}, {"x": 3}, ["x"]):
        with pytest.raises(PluginError):
            registry.register(Mine(result), name="bad")
    with pytest.raises(PluginError, match="no hook"):
        registry.register(object(), name="bad")
    for name in ("", "a:b", "a@b"):
        with pytest.raises(ValueError, match="not a name"):
            registry.register(Mine(), name=name)
    with pytest.raises(TypeError, match="name must be a str"):
        registry.register(Mine(), name=3)
    with pytest.raises(ValueError, match="already"):
        registry.register(Mine(), name="Builtin")
    assert registry.register(Mine(), name="bad") == "bad"  # nothing was left behind


def test_registered_plugin_cannot_take_a_builtins_name(monkeypatch):
    monkeypatch.delenv("LAMOST_LSF_STRICT_PLUGINS", raising=False)
    registry = PluginRegistry()
    builtin = registry.find("center", "gauss")
    with pytest.warns(PluginWarning, match="'gauss' is a built-in"):
        registry.register(Mine({"Gauss": Mine.first}), name="mine")
    assert registry.find("center", "gauss").obj is builtin.obj
    assert registry.find("center", "mine:gauss").obj is Mine.first
    registry.unregister("mine")
    assert registry.problems == ()
    monkeypatch.setenv("LAMOST_LSF_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="'gauss' is a built-in"):
        registry.register(Mine({"Gauss": Mine.first}), name="mine")
    assert registry.find("center", "gauss").obj is builtin.obj
    with pytest.raises(PluginLookupError):
        registry.find("center", "mine:gauss")


def test_registered_name_of_an_installed_plugin_is_refused(install):
    install("dist-a", centers(["fine"]), entry="taken")
    with pytest.raises(ValueError, match="already"):
        PluginRegistry().register(Mine(), name="Taken")


def test_a_module_can_be_registered(install):
    module = install("dist-hidden", centers(["hidden"]), raw=b"")
    registry = PluginRegistry()
    assert registry.register(__import__(module)) == module
    assert registry.find("center", "hidden").plugin == module


# -- documentation ------------------------------------------------------------------------------------------

GUIDE = HERE.parent / "docs" / "plugins.rst"


def test_every_hook_is_documented():
    from lamost_lsf.plugins import hookspecs

    text = GUIDE.read_text(encoding="utf-8")
    specified = {name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "lamost_lsf_spec")}
    assert specified == set(HOOKS)
    for name in specified:
        assert re.search(rf"^``{name}\(\)``$", text, re.MULTILINE), f"{name} has no entry in the guide"
        assert getattr(hookspecs, name).__doc__
    for variable in ("LAMOST_LSF_DISABLED_PLUGINS", "LAMOST_LSF_STRICT_PLUGINS"):
        assert f"``{variable}``\n    " in text


def test_examples_of_the_guide_run(site):
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    assert len(blocks) == 3
    code = "\n".join(textwrap.dedent(block) for block in blocks)
    calls = "\n".join(f"{name}()" for name in re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    assert calls.count("test_") == 3
    assert python(f"{code}\n{calls}\nprint(json.dumps('ran'))", site["good"]) == "ran"
    for path in re.findall(r"literalinclude:: (\S+)", text):
        assert (GUIDE.parent / path).is_file()


def test_public_names_have_documentation():
    for name in plugins.__all__:
        assert getattr(plugins, name).__doc__, name
