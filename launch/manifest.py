"""YAML as a person would write it: keys in their order, no anchors, scripts as blocks."""

import yaml


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def _text(dumper, text: str):
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(*manifests: dict) -> str:
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=1000)
