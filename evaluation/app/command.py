"""`toto app`: checks the port, loads the models, serves the page until Ctrl-C."""

from __future__ import annotations

import os
import socket
import sys
import tempfile

from evaluation.app.args import DESCRIPTION, AppArgs, models_of
from training.flags import parse, require


def main(argv: list[str] | None = None) -> None:
    (args,) = parse((AppArgs,), sys.argv[1:] if argv is None else list(argv), "toto app", DESCRIPTION)
    paths = models_of(args)
    check_address(args.host, args.port)
    with tempfile.TemporaryDirectory(prefix="toto-app-") as folder:
        page = served(args, paths, folder)
        print(f"The page is at http://{args.host}:{args.port} (Ctrl-C ends it).", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def served(args: AppArgs, paths: list[str], folder: str):
    """The page, which answers at `args.host` and `args.port` in threads of its own: a `gradio.Blocks`.

    Args:
        folder: for uploads and pictures; no other file is served.
    Raises:
        ValueError: gradio is missing or of another major version, or a model cannot be loaded.
    """
    # Before gradio is imported: no messages to its makers, uploads in a folder of our own, no proxy for its own page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = folder
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), args.host, "localhost"]))
    check_gradio()

    from evaluation.app.models import load_models
    from evaluation.app.page import CSS, build, theme

    page = build(load_models(paths), args)
    page.queue(max_size=args.max_queue, default_concurrency_limit=1)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size=f"{args.max_upload}mb",
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        css=CSS,
    )
    return page


def check_gradio() -> None:
    """Raises ValueError unless gradio 6 is installed."""
    try:
        import gradio
    except ImportError as error:
        raise ValueError("toto app needs gradio 6; pip install 'modeling-toto[app]'.") from error
    require(
        gradio.__version__.split(".")[0] == "6",
        f"toto app needs gradio 6, and {gradio.__version__} is installed; pip install 'gradio>=6,<7' 'pillow<13' (pip "
        "takes an old gradio next to a newer pillow).",
    )


def check_address(host: str, port: int) -> None:
    """Raises ValueError if nothing can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"--host is '{host}', which is no address of this machine; use 127.0.0.1.") from error
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a closed page leaves traces
        try:
            probe.bind(address)
        except OSError as error:
            raise ValueError(
                f"Nothing can listen at port {port} of {host} ({error.strerror}); stop the program that does, or pass "
                "another --port."
            ) from error
