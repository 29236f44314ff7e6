"""Checks the commands whose configuration Hydra only shows: --help, --cfg, --info, --hydra-help.

Hydra ends in a traceback where it cannot show something. Needs no torch.
"""

import argparse
import string

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vggexp.config.compose import Command, compose_or_diagnose, hydra_session, own_keys
from vggexp.config.diagnostics import compose_error_line
from vggexp.config.hydra_safety import resolve_section
from vggexp.config.overrides import parse_overrides
from vggexp.errors import ConfigError
from vggexp.sweep.expand import check_command

# What Hydra puts into hydra.help.template.
HELP_PLACEHOLDERS = {"APP_CONFIG_GROUPS", "CONFIG", "FLAGS_HELP", "HYDRA_CONFIG_GROUPS"}


def reject_own_overrides(command: Command) -> None:
    """Raises ConfigError for overrides that --hydra-help, which knows Hydra's keys alone, lacks."""
    with hydra_session(command):
        overrides, problems = parse_overrides(command.overrides)
    for override in overrides:
        if not override.is_hydra:
            problems.append(f"{override.text}: --hydra-help shows Hydra's own keys; leave it out")
    if problems:
        raise ConfigError(*problems)


def check_composes(command: Command) -> None:
    """Raises ConfigError if Hydra could not show the configuration that the overrides make."""
    with hydra_session(command) as compose_fn:
        overrides, problems = parse_overrides(command.overrides)
        composition = compose_or_diagnose(overrides, compose_fn)
    if problems or composition.refusal:
        check_command(command)  # raises with more problems, unless all of them are Hydra's
        raise ConfigError(*([*problems, *composition.problems] or [composition.refusal]))
    if command.arguments.cfg or command.arguments.resolve:
        _check_shown(composition.node, command.arguments)
    if command.arguments.help and composition.node is not None:
        _check_help(composition.node)


def _check_help(node: DictConfig) -> None:
    """Checks the text that --help shows, which a file may replace."""
    values = resolve_section(node, "hydra.help")
    template = string.Template(str(values["template"]))
    unknown = set(template.get_identifiers()) - HELP_PLACEHOLDERS
    if unknown or not template.is_valid():
        raise ConfigError(
            f"hydra.help.template: after $ only {', '.join(sorted(HELP_PLACEHOLDERS))}; "
            "write $$ for a dollar sign"
        )


def _check_shown(node: DictConfig | None, arguments: argparse.Namespace) -> None:
    """Checks the part of a configuration that --cfg shows, and its values if it resolves them."""
    assert node is not None
    if arguments.cfg in (None, "job"):
        node = own_keys(node)
    package = arguments.package
    try:
        shown = node if package in (None, "_global_") else OmegaConf.select(node, package)
        if shown is None:
            raise ConfigError(f"--package={package}: no such section; --cfg job prints all")
        if arguments.resolve and OmegaConf.is_config(shown):
            OmegaConf.to_container(shown, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(compose_error_line(error)) from error
