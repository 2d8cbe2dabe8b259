"""Train the networks that come with the package, and write their weights into adv_lib/weights."""

import torch

from adv_lib import data, training


def main() -> None:
    """One file a network: its weights, and the fingerprint of the images that it was trained on."""
    torch.set_num_threads(1)
    digits = data.load("digits")
    for kind, seed in training.SHIPPED:
        model = training.trained(kind, digits, seed)
        kept = {"data": training.digest(digits), "weights": model.state_dict()}
        file = training.WEIGHTS / f"{kind}-{seed}.pt"
        torch.save(kept, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
