"""The original files of the published tokenizers: their addresses, download over https, and hashes."""

import hashlib
import http.client
import os
import urllib.parse
import urllib.request
from pathlib import Path

from tokenization.files import sha256

DALL_E, TAMING = "https://github.com/openai/DALL-E", "https://github.com/CompVis/taming-transformers"
_CDN, _HEIBOX = "https://cdn.openai.com/dall-e", "https://heibox.uni-heidelberg.de/d"
# Flag -> (name on a mirror and in the cache, published address, published sha256). The addresses are from the notebook
# in OpenAI's repository and from taming's README, which links shared folders; we found no published hash of any file.
ORIGINALS = {
    "dvae": {
        "encoder": ("encoder.pkl", f"{_CDN}/encoder.pkl", None),
        "decoder": ("decoder.pkl", f"{_CDN}/decoder.pkl", None),
    },
    **{
        kind: {
            "checkpoint": (f"{name}.ckpt", f"{_HEIBOX}/{share}/files/?p=%2Fckpts%2Flast.ckpt&dl=1", None),
            "config": (f"{name}.yaml", f"{_HEIBOX}/{share}/files/?p=%2Fconfigs%2Fmodel.yaml&dl=1", None),
        }
        for kind, name, share in (
            ("vqgan-1k", "vqgan_imagenet_f16_1024", "8088892a516d4e3baf92"),
            ("vqgan-16k", "vqgan_imagenet_f16_16384", "a7530b09fed84f80a887"),
        )
    },
    "flava": {},
}


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, new_url):
        if not new_url.startswith("https://"):
            raise ValueError(f"{request.full_url} redirects to {new_url}, which is not https; it was not followed.")
        return super().redirect_request(request, file, code, message, headers, new_url)


def _open(url: str):
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not https; it was not opened.")
    request = urllib.request.Request(url, headers={"User-Agent": "toto convert-tokenizer"})
    return urllib.request.build_opener(_HttpsOnly).open(request, timeout=30)


def fetch(url: str, target: Path) -> None:
    """Download an https address to `target`, which exists only once it is complete.

    Raises:
        OSError: the connection failed or ended early. ValueError: the address, or a redirect, is not https.
    """
    from tokenization.terminal.progress import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with _open(url) as response, partial.open("wb") as file:
        expected = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=expected, unit="B", unit_scale=True, desc=target.name) as progress:
            while block := response.read(2**20):
                file.write(block)
                progress.update(len(block))
        received = file.tell()
    if expected and received != expected:
        partial.unlink()
        raise OSError(f"{url} sent {received:,} of {expected:,} bytes; run the command again.")
    partial.rename(target)


def _original(args, flag: str) -> tuple[Path, str]:
    """(local path, address) of a published file: in the mirror's folder, in the cache, or downloaded now."""
    name, url, _ = ORIGINALS[args.source][flag]
    if args.mirror:
        url = f"{args.mirror.rstrip('/')}/{name}"
        if not url.startswith("https://"):
            path = Path(urllib.parse.unquote(url.removeprefix("file://"))).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"The mirror {args.mirror} does not hold {name}.")
            return path, str(path)
    # One folder per address, so that a mirror's file is never mistaken for the published one.
    path = Path(args.cache_dir).expanduser() / hashlib.sha256(url.encode()).hexdigest()[:8] / name
    if not path.is_file():
        try:
            if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
                raise OSError("HF_HUB_OFFLINE is set")
            fetch(url, path)
        except (OSError, http.client.HTTPException) as error:
            needed = ORIGINALS[args.source]
            raise OSError(
                f"{url} could not be fetched ({error}). --from {args.source} needs "
                + " and ".join(f"{file} ({address})" for file, address, _ in needed.values())
                + "; download them elsewhere and pass them as "
                + " ".join(f"--{other} FILE" for other in needed)
                + ", or name a folder or https address that holds them with --mirror."
            ) from error
    return path, url


def gather(args) -> tuple[dict[str, Path], list[dict]]:
    """The source files by flag, each hashed before it is parsed, and their records for source.json.

    Args:
        args: `convert_tokenizer.ConvertArgs`.
    Raises:
        ValueError: a hash is not the expected one. OSError: a file does not exist and cannot be fetched.
    """
    expected = {name: digest.lower() for name, digest in (item.rsplit("=", 1) for item in args.sha256)}
    paths, records = {}, []
    for flag in ("encoder", "decoder", "checkpoint", "config"):
        given, published = getattr(args, flag), ORIGINALS.get(args.source, {}).get(flag)
        if given is None and published is None:
            continue
        path, address = (Path(given).expanduser(), None) if given is not None else _original(args, flag)
        if path.is_dir() and flag == "checkpoint":  # written by transformers' save_pretrained
            found = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(f"{path} holds neither model.safetensors nor pytorch_model.bin.")
            path = found[0]
        if not path.is_file():
            raise FileNotFoundError(f"--{flag} {path} does not exist.")
        digest, known = sha256(path), expected.pop(path.name, None) or (published and published[2])
        if known and digest != known:
            raise ValueError(
                f"{path} has the sha256 {digest}, not {known}; it is damaged or a different file, and was not read."
            )
        print(f"{path}: sha256 {digest} " + ("(as expected)" if known else "(no hash is published to compare it with)"))
        paths[flag] = path
        records.append({"file": path.name, "address": address, "bytes": path.stat().st_size, "sha256": digest})
    if expected:
        raise ValueError(f"--sha256 names {', '.join(expected)}, which is not among the files to convert.")
    return paths, records
