"""`python -m tvp.trainer …` is `tvp train …`, for `accelerate launch -m tvp.trainer …`."""

from tvp.sdk.cli import train_main

if __name__ == "__main__":
    train_main()
