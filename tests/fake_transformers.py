"""A stand-in for the package `transformers`, which tests do without: local folders, batches and models that move."""

from types import SimpleNamespace


class Batch(dict):
    """What processors return: a dictionary that moves to a device."""

    def to(self, device):
        return self


class Model:
    def __init__(self, answer):
        self.answer = answer

    def to(self, device):
        return self

    def eval(self):  # noqa: A003
        return self

    def __call__(self, **inputs):
        return self.answer(**inputs)


def loader(made):
    """Return a class of the package that gives `made` from a folder with a config.json."""

    def from_pretrained(folder, *, local_files_only):
        assert local_files_only  # nothing is downloaded
        if not (folder / "config.json").exists():
            raise OSError(f"{folder} has no config.json")
        return made

    return SimpleNamespace(from_pretrained=from_pretrained)


def package(**classes):
    """Return the package with these classes; `package.said` is what it would print while it loads: bars, warnings."""
    said = {"bars", "warnings"}
    logging = SimpleNamespace(
        set_verbosity_error=lambda: said.discard("warnings"), disable_progress_bar=lambda: said.discard("bars")
    )
    return SimpleNamespace(__version__="0.0", logging=logging, said=said, **classes)
