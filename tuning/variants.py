"""A variant: a name, and the settings in which it differs from the preset."""

import dataclasses
import re
from dataclasses import dataclass, field

from common.config import Config, flag
from common.errors import ConfigError
from common.presets import did_you_mean

_FOLDER_NAME = re.compile(r"[\w=,+-][\w=,+.-]*")


@dataclass(frozen=True)
class Variant:
    """settings: values as they are typed, by the name of their field in Config."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """The name of one below, `name:setting=value,...` or `setting=value,...` (its own name).

        Raises ConfigError in a sentence.
        """
        for variant in ABLATION:
            if variant.name == text:
                return variant
        name, _, listed = text.partition(":") if ":" in text else (text, "", text)
        if not _FOLDER_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a folder: put another name and `:` before it.")
        pairs = [pair.partition("=") for pair in listed.split(",") if pair]
        for setting, equals, _ in pairs:
            _check_setting(setting, equals)
        return cls(name, {setting: value for setting, _, value in pairs})

    def over(self, base: "Variant") -> "Variant":
        """This one's settings on top of another's."""
        return Variant(self.name, base.settings | self.settings)

    def flags(self) -> list[str]:
        """The settings as launch.py takes them: `double=true` is --double, =false --no-double."""
        words: list[str] = []
        for name, value in self.settings.items():
            switch = {"true": flag(name), "false": flag("no_" + name)}.get(value.lower())
            words += [switch] if switch else [flag(name), value]
        return words


def _check_setting(name: str, equals: str) -> None:
    settings = [f.name for f in dataclasses.fields(Config)]
    if not equals:
        names = ", ".join(variant.name for variant in ABLATION)
        raise ConfigError(f"{name!r} is neither setting=value nor a variant known here: {names}.")
    if name not in settings:
        raise ConfigError(f"There is no setting {name!r}{did_you_mean(name, settings)}.")


def _the_other_way_round(setting: str) -> Variant:
    """A switch of the preset `pong`, which is Config's defaults, turned."""
    turned = not getattr(Config(), setting)
    return Variant(setting if turned else f"no-{setting}", {setting: str(turned).lower()})


ABLATION = [
    Variant("pong"),
    _the_other_way_round("standardize"),
    _the_other_way_round("prioritized"),
    _the_other_way_round("double"),
    _the_other_way_round("dueling"),
    Variant("n=1", {"n_step": "1"}),
    Variant("n=3", {"n_step": "3"}),
    # Half, twice and thrice the preset's.
    Variant("ratio=0.9", {"samples_per_insert": "0.9"}),
    Variant("ratio=3.6", {"samples_per_insert": "3.6"}),
    Variant("ratio=5.4", {"samples_per_insert": "5.4"}),
    # Differences from the reference that nothing above covers.
    Variant("nature", {"network": "nature"}),
    Variant("lr=1e-4", {"learning_rate": "1e-4", "learning_rate_final": "0"}),
    Variant("constant-lr", {"learning_rate_final": "0"}),
    Variant("float32", {"precision": "float32"}),
    Variant("not-averaged", {"policy_average_updates": "0"}),
]
"""Each turns one thing of the preset `pong`."""
