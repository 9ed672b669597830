"""The command `udean completion`: a script with which a shell completes our commands and their options.

typer's scripts complete udean-run and the like; `udean run` is delegated to them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .common import command
from .launch import commands

BASH = """_udean_completion() {{
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=( $(compgen -W "{names}" -- "${{COMP_WORDS[1]}}") )
        return
    fi
    local program="udean-${{COMP_WORDS[1]}}"
    COMP_WORDS=("$program" "${{COMP_WORDS[@]:2}}")
    COMP_CWORD=$((COMP_CWORD - 1))
    local function="_${{program//-/_}}_completion"
    declare -F "$function" >/dev/null && "$function" "$program"
}}
complete -o default -F _udean_completion udean"""

ZSH = """_udean_completion() {{
  if (( CURRENT == 2 )); then
    compadd {names}
  else
    words=("udean-$words[2]" "${{(@)words[3,-1]}}")
    (( CURRENT-- ))
    local function="_${{words[1]//-/_}}_completion"
    (( $+functions[$function] )) && $function
  fi
}}
compdef _udean_completion udean"""

FISH = 'complete --command udean --no-files --condition __fish_use_subcommand --arguments "{names}"'
FISH_COMMAND = (
    "complete --command udean --condition '__fish_seen_subcommand_from {name}' --arguments \"("
    "env {variable}=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args "
    "_TYPER_COMPLETE_ARGS=(string replace --regex '^udean +' 'udean-' -- (commandline -cp)) udean-{name})\""
)


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Your shell.")],
) -> None:
    """Print a script that lets a shell complete commands and options."""
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    names = sorted(commands())
    variables = {name: f"_UDEAN_{name.replace('-', '_').upper()}_COMPLETE" for name in names}
    programs = [name for name in names if name not in ("completion", "doctor")]
    for name in programs:
        print(get_completion_script(prog_name=f"udean-{name}", complete_var=variables[name], shell=shell))
    template = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    print(template.format(names=" ".join(names)))
    if shell == "fish":
        for name in programs:
            print(FISH_COMMAND.format(name=name, variable=variables[name]))


main = command(
    completion,
    "udean completion",
    'eval "$(udean completion bash)"  # in ~/.bashrc',
    'eval "$(udean completion zsh)"  # in ~/.zshrc, after compinit',
    "udean completion fish | source  # in ~/.config/fish/config.fish",
)

if __name__ == "__main__":
    main()
