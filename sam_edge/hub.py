"""Checkpoint folders and exported folders on Hugging Face's hub, byte for byte as they lie on the disk."""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import CONFIG, is_checkpoint_folder
from sam_edge.runtimes.folder import MANIFEST, is_exported_folder

MODEL_CARD = """---
{{ card_data }}
---

# A Segment Anything model made with sam-edge

    import sam_edge

    model = sam_edge.Pretrained.from_pretrained("OWNER/NAME")
    predictor = sam_edge.SamPredictor(sam_edge.load(model.folder))

How it was made, step by step, is in `config.json` (of graphs `model.json`), under `lineage`.
"""
"""What stands on the hub of a folder that has no README.md of its own."""


class Pretrained(
    ModelHubMixin,
    library_name="sam-edge",
    pipeline_tag="mask-generation",
    tags=["segment-anything", "sam"],
    model_card_template=MODEL_CARD,
):
    """A checkpoint folder or an exported folder that comes from the hub, or goes there.

    `save_pretrained` and `push_to_hub` are huggingface_hub's, `folder` is a MODEL for everything else.
    """

    def __init__(self, folder: str | Path) -> None:
        """`folder` holds a checkpoint or graphs.

        Raises:
            CheckpointError: it holds neither.
        """
        self.folder = Path(folder)
        if not (is_checkpoint_folder(self.folder) or is_exported_folder(self.folder)):
            raise CheckpointError(f"{folder} is neither a checkpoint folder nor an exported folder.")

    @classmethod
    def from_pretrained(  # type: ignore[override, unused-ignore]
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "Pretrained":
        """A local folder, or a repository of the hub, `owner/name`, downloaded once into huggingface_hub's cache.

        `options` are huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: no such folder or repository, no way to it, or nothing of sam-edge's in it.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls(pretrained_model_name_or_path)
        name = str(pretrained_model_name_or_path)
        try:
            return cls(snapshot_download(name, **options))
        except HFValidationError as error:
            raise CheckpointError(f"{name} is neither a folder nor a repository's owner/name.") from error
        except (HfHubHTTPError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{name} cannot be had from the hub: {reason[:200]}") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        """All files of the folder, as they are; the mixin adds a README.md where there is none."""
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The steps that made the model, the first first."""
        file = self.folder / (CONFIG if is_checkpoint_folder(self.folder) else MANIFEST)
        content = json.loads(file.read_text(encoding="utf-8"))
        steps: list[dict[str, Any]] = content.get("config", content).get("lineage", [])
        return steps
