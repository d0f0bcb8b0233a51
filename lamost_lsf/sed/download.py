"""Download stellar libraries: only when asked, with checksums, resumed where interrupted, kept in a cache."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lamost_lsf.files import atomic_path

__all__ = ["DOWNLOADS", "bosz_url", "cache_folder", "download_files", "download_library"]

_BOSZ_2017 = "https://archive.stsci.edu/missions/hlsp/bosz"
_BOSZ_2024 = "https://archive.stsci.edu/hlsps/bosz/bosz2024"

#: Archives of the libraries that are one file.
DOWNLOADS = {
    "miles": "https://research.iac.es/proyecto/miles/media/tarfiles/Stellar_Libraries/MILES_library_v9.1_FITS.tar.gz",
    "ngsl": "https://archive.stsci.edu/pub/hlsp/stisngsl/v2/stis_ngsl_v2.zip",
}

_CHECKSUMS = "checksums.json"
_CHUNK = 1 << 18


def cache_folder() -> Path:
    """Where libraries are kept unless told otherwise: ``LAMOST_LSF_CACHE``, or the user's own cache folder."""
    given = os.environ.get("LAMOST_LSF_CACHE")
    return Path(given) if given else Path(_pooch().os_cache("lamost_lsf"))


def bosz_url(
    teff: float,
    logg: float,
    feh: float,
    *,
    alpha: float = 0.0,
    carbon: float = 0.0,
    resolving_power: int = 2000,
    release: int = 2024,
) -> str:
    """Address of a BOSZ model at MAST.

    Parameters
    ----------
    teff, logg, feh, alpha, carbon : float
        On the grid of the release: K, cgs, dex.
    resolving_power : int
        2017: 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 300000. 2024: 500 to 50000 of these.
    release : {2017, 2024}
        Bohlin et al. 2017 (FITS); Mészáros et al. 2024 (text), MARCS up to 8000 K, plane-parallel above log g = 3, and
        ATLAS9 above.

    Examples
    --------
    >>> print(bosz_url(6000, 4.5, -1.25, release=2017).rsplit("/", 1)[1])
    amm13cp00op00t6000g45v20modrt0b2000rs.fits
    >>> print(bosz_url(6000, 4.5, -0.5).rsplit("/", 1)[1])
    bosz2024_mp_t6000_g+4.5_m-0.50_a+0.00_c+0.00_v2_r2000_resam.txt.gz
    """
    if release == 2017:
        name = "a" + "".join(f"{key}{_tenths(v)}" for key, v in (("m", feh), ("c", carbon), ("o", alpha)))
        name += f"t{teff:.0f}g{10 * logg:02.0f}v20modrt0b{resolving_power:d}rs.fits"
        folder = (
            f"insbroad_{resolving_power:06d}/metal_{feh + 0.0:+.2f}/carbon_{carbon + 0.0:+.2f}/alpha_{alpha + 0.0:+.2f}"
        )
        return f"{_BOSZ_2017}/fits/{folder}/{name}"
    if release == 2024:
        kind = "ap" if teff > 8000 else ("mp" if logg > 3.0 else "ms")
        name = (
            f"bosz2024_{kind}_t{teff:.0f}_g{logg + 0.0:+.1f}_m{feh + 0.0:+.2f}_a{alpha + 0.0:+.2f}_c{carbon + 0.0:+.2f}"
        )
        return f"{_BOSZ_2024}/r{resolving_power:d}/m{feh + 0.0:+.2f}/{name}_v2_r{resolving_power:d}_resam.txt.gz"
    raise ValueError(f"release must be 2017 or 2024, got {release!r}")


def _tenths(value: float) -> str:
    """Abundance in tenths of a dex, rounded up, as in the names of 2017: m13 is -1.25."""
    return f"{'m' if value < 0 else 'p'}{int(abs(value) * 10 + 0.5):02d}"


def download_library(
    name: str,
    folder: str | os.PathLike | None = None,
    *,
    labels: Iterable[tuple[float, float, float]] | None = None,
    resolving_power: int = 2000,
    release: int = 2024,
    checksums: dict[str, str] | None = None,
    progress: bool = False,
) -> Path:
    """Fetch a library: MILES or NGSL whole, BOSZ model by model.

    Nothing else in the package reaches for the network. A file that is there and agrees with its checksum is not
    fetched again; an interrupted one is resumed, or fetched anew where the archive's file has changed since. Checksums
    (SHA-256) are those given in ``checksums``; the archives publish none, so that otherwise the one of the first
    download is written to ``checksums.json`` and holds from then on. Spectra of an unpacked archive that were deleted
    or cut short come back from it.

    Parameters
    ----------
    name : {"miles", "ngsl", "bosz"}
    folder : path, optional
        Where to; a folder of the library's name in `cache_folder` by default. Created if absent.
    labels : sequence of (teff, logg, feh)
        Of the BOSZ models wanted.
    resolving_power, release : int
        Of BOSZ; see `bosz_url`.
    checksums : dict, optional
        File name to SHA-256, in hexadecimal.
    progress : bool
        Show a bar for each file (needs tqdm).

    Returns
    -------
    Path
        The folder, ready for `~lamost_lsf.sed.libraries.read_library`.

    Raises
    ------
    ImportError
        pooch is not installed.
    ValueError
        Another library, or BOSZ without labels.
    ConnectionError
        The archive cannot be reached: says which file to put where by hand.
    OSError
        A file whose checksum does not agree; an archive that cannot be unpacked, which is deleted.
    """
    name = str(name).lower()
    if name not in (*DOWNLOADS, "bosz"):
        raise ValueError(f"no download of library {name!r}; choose from {', '.join((*DOWNLOADS, 'bosz'))}")
    if name == "bosz":
        rows = [tuple(float(v) for v in row) for row in (labels if labels is not None else [])]
        if not rows or any(len(row) != 3 for row in rows):
            raise ValueError(
                "labels must list (teff, logg, feh) of the BOSZ models to fetch; the whole grid is terabytes"
            )
        urls = [bosz_url(*row, resolving_power=resolving_power, release=release) for row in rows]
        if release == 2024:
            urls.insert(0, f"{_BOSZ_2024}/wavelength_grids/bosz2024_wave_r{resolving_power:d}.txt")
    else:
        if labels is not None:
            raise ValueError(f"labels choose BOSZ models; library {name} is fetched whole")
        urls = [DOWNLOADS[name]]
    target = Path(folder) if folder is not None else cache_folder() / name
    files = download_files(urls, target, checksums=checksums, progress=progress)
    for file in files:
        if file.name.endswith((".zip", ".tar.gz")):
            _unpack(file, target)
    return target


def download_files(
    urls: Iterable[str],
    folder: str | os.PathLike,
    *,
    checksums: dict[str, str] | None = None,
    progress: bool = False,
) -> list[Path]:
    """Fetch files into a folder, with the guarantees of `download_library`.

    Returns
    -------
    list of Path
    """
    pooch = _pooch()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    register = target / _CHECKSUMS
    known = _read_register(target)
    known.update({str(key): str(value).lower().removeprefix("sha256:") for key, value in (checksums or {}).items()})
    files = []
    for url in urls:
        name = url.rsplit("/", 1)[1]
        try:
            path = pooch.retrieve(
                url, known_hash=f"sha256:{known[name]}" if name in known else None, fname=name, path=target,
                downloader=_Resuming(target, progress),
            )  # fmt: skip
        except ValueError as error:
            if "hash" not in str(error).lower():
                raise
            raise OSError(
                f"{url} does not have the checksum {known[name][:12]}...: damaged on the way, or changed at the "
                f"archive. If it was changed, take its entry out of {register}"
            ) from None
        if name not in known:
            known[name] = _digest(Path(path))
            _write_register(target, known)
        files.append(Path(path))
    return files


class _Resuming:
    """Downloader for pooch that keeps what it has in ``<name>.part`` and asks for the rest.

    ``<name>.part.version`` holds what tells one version of the file from another (ETag, or else Last-Modified): without
    it, or where the archive has another by now, the file is fetched from its beginning.
    """

    def __init__(self, folder: Path, progress: bool = False, timeout: float = 30.0) -> None:
        self.folder, self.progress, self.timeout = folder, progress, timeout

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        import requests

        # pooch hands over a temporary file, which it deletes after a failure; the part must outlive that
        part = self.folder / f"{url.rsplit('/', 1)[1]}.part"
        try:
            self._fetch(requests, url, part)
        except requests.exceptions.HTTPError as error:
            raise OSError(f"{url}: the archive answers {error.response.status_code} {error.response.reason}") from None
        except requests.exceptions.RequestException as error:
            kept = f" ({part.stat().st_size} bytes are kept and will be resumed)" if _resumable(part) else ""
            raise ConnectionError(
                f"cannot reach {url}{kept}. Without a connection, fetch it elsewhere and put it into {part.parent}. "
                f"The error was: {type(error).__name__}"
            ) from None
        os.replace(part, output_file)
        _version_of(part).unlink(missing_ok=True)

    def _fetch(self, requests: Any, url: str, part: Path) -> None:
        headers, have = {"Accept-Encoding": "identity"}, 0
        if _resumable(part):
            have = part.stat().st_size
            version = _version_of(part).read_text(encoding="utf-8")
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
            # not every server heeds If-Range; 416: nothing is left to fetch, or the part is not of this file
            partial = response.status_code == 206
            if have and (response.status_code == 416 or (partial and not _continues(response, have, version))):
                part.unlink()
                self._fetch(requests, url, part)
                return
            response.raise_for_status()
            if not partial:
                have = 0
                part.unlink(missing_ok=True)
                _version_of(part).write_text(_version(response), encoding="utf-8")
            expected = response.headers.get("Content-Length")
            expected = int(expected) + have if expected is not None else None
            bar = self._bar(url, expected, have)
            with open(part, "ab") as stream:
                for chunk in response.iter_content(_CHUNK):
                    stream.write(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
            if bar is not None:
                bar.close()
        size = part.stat().st_size
        if expected is not None and size < expected:
            raise requests.exceptions.ConnectionError(f"{size} of {expected} bytes came")

    def _bar(self, url: str, total: int | None, initial: int) -> Any:
        if not self.progress:
            return None
        from tqdm import tqdm

        return tqdm(total=total, initial=initial, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[1])


def _version_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _resumable(part: Path) -> bool:
    version = _version_of(part)
    return part.is_file() and part.stat().st_size > 0 and version.is_file() and version.stat().st_size > 0


def _version(response: Any) -> str:
    """Strong ETag of an answer, or else its date of last modification, or nothing."""
    tag = response.headers.get("ETag", "")
    # a weak one also stands for bytes that differ
    return response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag


def _continues(response: Any, have: int, version: str) -> bool:
    """Whether an answer is the rest of a file of which ``have`` bytes are there."""
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    return begins and _version(response) in ("", version)


def _pooch() -> Any:
    try:
        import pooch
    except ImportError:
        raise ImportError("downloads need pooch: pip install 'lamost-lsf[sed]'") from None
    return pooch


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_register(folder: Path) -> dict[str, str]:
    path = folder / _CHECKSUMS
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in content.items()}
    except (ValueError, AttributeError):
        raise OSError(f"{path} is damaged: delete it to accept the files as they are") from None


def _write_register(folder: Path, known: dict[str, str]) -> None:
    with atomic_path(folder / _CHECKSUMS, overwrite=True) as temporary:
        temporary.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")


_DAMAGE = (EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack what is not there yet: nothing lands outside the folder, nor under its final name before it is whole."""
    done = folder / f".{archive.name}.unpacked"
    digest = _digest(archive)
    if _is_unpacked(done, folder, digest):
        return
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=folder) as temporary:
        within = Path(temporary)
        try:
            _extract(archive, within)
        except _DAMAGE as error:
            archive.unlink()
            known = _read_register(folder)
            if known.pop(archive.name, None) is not None:
                _write_register(folder, known)
            raise OSError(
                f"{archive.name} is damaged and was deleted: fetch it again ({type(error).__name__}: {error})"
            ) from None
        files = [path for path in sorted(within.rglob("*")) if not path.is_dir()]
        members = {path.relative_to(within).as_posix(): path.stat().st_size for path in files}
        for path, member in zip(files, members, strict=True):
            (folder / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, folder / member)
    with atomic_path(done, overwrite=True) as marker:
        marker.write_text(json.dumps({"sha256": digest, "members": members}), encoding="utf-8")


def _is_unpacked(done: Path, folder: Path, digest: str) -> bool:
    """Whether all members of the archive of that checksum are in the folder, in their full size."""
    try:
        content = json.loads(done.read_text(encoding="utf-8"))
        members = content["members"].items() if content["sha256"] == digest else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return members is not None and all(
        (folder / member).is_file() and (folder / member).stat().st_size == size for member, size in members
    )


def _extract(archive: Path, folder: Path) -> None:
    def place(member: str) -> Path:
        path = folder / member
        if not path.resolve().is_relative_to(folder.resolve()):
            raise OSError(f"{archive} holds a file that would be written outside its folder: {member}")
        return path

    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as content:
            for name in content.namelist():
                place(name)
            content.extractall(folder)
        return
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as content:
        for member in content:
            path = place(member.name)
            # links and devices, which may lead anywhere, are no spectra; the filters of extractall came with 3.11.4
            if member.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as target:
                    shutil.copyfileobj(content.extractfile(member), target)
        # the checksum stands at the very end, which tarfile has no need to read
        while stream.read(_CHUNK):
            pass
