"""How bash completes `voldriver`: as click does it, but for words with an @ in them.

To bash @, = and : end a word (COMP_WORDBREAKS), so that VOLUME@SNAPSHOT comes as three, and only what stands behind the
@ is replaced. Here the line is taken as it was typed, and what bash keeps of the word is left out of the answers.
"""

import os
from typing import Final

from click.shell_completion import BashComplete, split_arg_string

_SCRIPT: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT} response completion type value
    local word=${line##*[[:space:]]}
    local kept=${word%%"${word##*["$COMP_WORDBREAKS"]}"}

    response=$(env COMP_LINE="$line" %(complete_var)s=bash_complete $1)

    for completion in $response; do
        IFS=',' read type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("${value#"$kept"}")
        fi
    done

    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
"""click's own of 8.1 to 8.5, but for `line`, `word` and `kept`."""


class Bash(BashComplete):
    """Completion for bash, of the line up to the cursor."""

    source_template = _SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is begun, without the program's, and that one."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        begun = "" if line[-1:].isspace() else words.pop()
        return words[1:], begun
