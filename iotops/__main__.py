"""Run iotops as `python -m iotops`."""

from iotops.cli import main

if __name__ == "__main__":
    main()
