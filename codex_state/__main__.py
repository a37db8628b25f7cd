"""``python -m codex_state``: the command line, where its script isn't on the PATH."""

from codex_state.cli.entry import main

if __name__ == "__main__":
    main()
