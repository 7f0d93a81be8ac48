"""Compute the golden figures anew with the published code: what `README.md` beside this file tells.

    python -m tests.golden.compute_figures FOLDER/musicfm

The inputs (``wav`` and those of other lengths) and the weights stay; everything else in ``expected.safetensors``
is computed again, compared with what the file held, and written.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from benchmarks.published import load_published

FOLDER = Path(__file__).resolve().parent
FEATURE = "melspec_2048"
MASK_SEED = 99
POOLED_LENGTHS = (200, 64, 32, 2)  # 4 s at 50, 16, 8 and 0.5 Hz


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", type=Path, help="a checkout of minzwon/musicfm, in a folder called musicfm")
    reference: Path = parser.parse_args().reference
    path = FOLDER / "expected.safetensors"
    before = load_file(path)
    inputs = {key: value for key, value in before.items() if key.startswith("wav")}
    figures = inputs | compute_figures(load_published(reference, FOLDER / "checkpoint.pt"), inputs)
    for key in sorted(figures):
        same = key in before and torch.equal(figures[key], before[key])
        print(f"{key}: {tuple(figures[key].shape)} {'unchanged' if same else 'CHANGED'}")
    save_file({key: figures[key].contiguous() for key in sorted(figures)}, path)


@torch.no_grad()
def compute_figures(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return everything that the published model makes of the inputs, by the names that the README lists."""
    # The training path asks for the quantiser by a name that nothing has.
    model.quantizer_melspec_2048 = model.quantizer_melspec_2048_0
    wav = inputs["wav"]
    figures = {"mel_db": model.preprocessing(wav, [FEATURE])[FEATURE]}
    figures["subsampled"] = model.conv(model.normalize({FEATURE: figures["mel_db"]})[FEATURE])
    logits, hidden_states = model.get_predictions(wav)
    figures |= {"logits": logits[FEATURE], "tokens": model.get_targets(wav)[FEATURE]}
    figures |= {f"hidden_{layer}": states for layer, states in enumerate(hidden_states)}
    for length in ("1s", "5s37"):
        figures[f"latent2_{length}"] = model.get_latent(inputs[f"wav_{length}"], 2)
    for num_frames in POOLED_LENGTHS:
        figures[f"adaptive_avg_{num_frames}"] = adaptive_avg_pool1d(hidden_states[2].mT, num_frames).mT
    return figures | compute_masked(model, wav)


def compute_masked(model: Any, wav: Tensor) -> dict[str, Tensor]:
    """Return the figures of one step of the pretraining: what is masked, by what, and the loss."""
    torch.manual_seed(MASK_SEED)
    masked_wav, token_indices = model.masking(wav)
    torch.manual_seed(MASK_SEED)
    logits, _, losses, accuracies = model(wav)
    return {
        "masked_token_indices": token_indices,
        "masked_noise": masked_wav[masked_wav != wav],
        "logits_masked": logits[FEATURE],
        "masked_loss": losses[FEATURE][None],
        "masked_accuracy": accuracies[FEATURE][None],
    }


if __name__ == "__main__":
    main()
