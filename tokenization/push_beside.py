"""A visual tokenizer pushed to the repository of a Toto model goes where the processor looks for it."""

import tempfile
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.utils import has_file

# Of a repository or folder that holds a model and its processor.
SUBFOLDER = "visual_tokenizer"


class PushBesideMixin:
    """Makes `push_to_hub` of a visual tokenizer spare the model that is already in the repository.

    transformers would write config.json and model.safetensors over the Toto model's own. Into its repository a
    tokenizer therefore goes as `visual_tokenizer/`; a repository of its own holds it at the top, as usual.
    """

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        token = kwargs.get("token")
        if has_file(repo_id, "config.json", token=token):
            there, _ = PreTrainedConfig.get_config_dict(repo_id, token=token)
            if there.get("model_type") == "toto":
                with tempfile.TemporaryDirectory() as folder:
                    self.save_pretrained(Path(folder) / SUBFOLDER)
                    return super()._upload_modified_files(folder, repo_id, {}, *args, **kwargs)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)
