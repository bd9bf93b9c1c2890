"""`python -m sam_edge`: the command line, also under `torchrun -m`."""

from sam_edge.cli import main

if __name__ == "__main__":
    main()
