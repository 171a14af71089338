"""When a run has failed too often: shell for the launchers whose script sees each status."""

import shlex

# The script names a file in $failures, which outlives its starts.
COUNT_FAILURE = """\
# Prints how often the run has failed since its newest checkpoint. Over weeks it may fail often, as long as it advances.
count_failure() {{
    newest=$(cd {checkpoints} 2> /dev/null && ls -d [0-9]*/commit_success.txt 2> /dev/null | sort -n | tail -n 1)
    newest=${{newest%%/*}}
    echo "$(date -Is) status $1 after checkpoint ${{newest:-none}}" >> "$failures"
    grep -c "after checkpoint ${{newest:-none}}$" "$failures"
}}
"""


def count_failure(workdir: str) -> str:
    """A function of shell, `count_failure STATUS`, for the workdir as the machine that runs the script sees it."""
    return COUNT_FAILURE.format(checkpoints=shlex.quote(f"{workdir}/checkpoints"))
