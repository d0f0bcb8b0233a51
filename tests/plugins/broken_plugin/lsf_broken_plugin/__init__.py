"""One module for each thing that can be wrong with a plug-in."""
