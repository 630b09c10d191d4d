"""A headless Chromium, asked through its DevTools protocol: what a page looks like, logs and loads.

python tests/browser.py PAGE.html OUT.png [WIDTH] [light|dark]
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
    "--no-default-browser-check",
)


def executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Seen:
    """A page as one reader sees it."""

    answers: list[Any]
    """Of the expressions that were asked."""
    png: bytes
    requests: list[str] = field(default_factory=list)
    """Addresses it asked for, other than itself and data in it."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of its console, refusals of its policy included."""


@dataclass(frozen=True)
class Reader:
    """How it is read."""

    width: int = 1280
    height: int = 900
    scheme: str = "light"
    scripts: bool = True
    whole: bool = True
    """Photograph all of the page, not only what fits the window."""


Ask = Callable[..., Awaitable[dict[str, Any]]]


def look(page: Path, *expressions: str, reader: Reader = Reader()) -> Seen:
    """Open `page` and evaluate JavaScript `expressions` in it, one after the other."""
    return look_often(page, [reader], *expressions)[0]


def look_often(page: Path, readers: list[Reader], *expressions: str) -> list[Seen]:
    """The same by several readers, in one browser."""
    return asyncio.run(_look(page, readers, expressions))


async def _look(page: Path, readers: list[Reader], expressions: tuple[str, ...]) -> list[Seen]:
    import aiohttp

    program = executable()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        environment = {**os.environ, "HOME": profile}
        process = await asyncio.create_subprocess_exec(
            *(program, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            env=environment,
        )
        try:
            address = await asyncio.wait_for(_address(process), 60)
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
                return [await asyncio.wait_for(_one(socket, page, reader, expressions), 60) for reader in readers]
        finally:
            process.terminate()
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    """Of its DevTools, which it says on its standard error."""
    assert process.stderr is not None
    said = b""
    while line := await process.stderr.readline():
        said += line
        if b"DevTools listening on " in line:
            return line.decode().split(" on ", 1)[1].strip()
    raise AssertionError(f"the browser ended: {said.decode(errors='replace')}")


async def _one(socket: Any, page: Path, reader: Reader, expressions: tuple[str, ...]) -> Seen:
    seen = Seen(answers=[], png=b"")
    address = page.absolute().as_uri()
    numbers = iter(range(1, 10**6))
    session = ""
    loaded = asyncio.Event()

    def note(event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                loaded.set()
            case "Network.requestWillBeSent" if not told["request"]["url"].startswith((address, "data:")):
                seen.requests.append(told["request"]["url"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                seen.complaints.append(str(told["args"]))
            case "Runtime.exceptionThrown":
                seen.complaints.append(str(told["exceptionDetails"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                seen.complaints.append(told["entry"]["text"])

    async def ask(method: str, **parameters: Any) -> dict[str, Any]:
        number = next(numbers)
        where = {"sessionId": session} if session else {}
        await socket.send_json({"id": number, "method": method, "params": parameters, **where})
        while True:
            answer = await socket.receive_json()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            note(answer)

    target = await ask("Target.createTarget", url="about:blank")
    session = (await ask("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
    for domain in ("Page", "Network", "Runtime", "Log"):
        await ask(f"{domain}.enable")
    await ask(
        "Emulation.setDeviceMetricsOverride",
        width=reader.width,
        height=reader.height,
        deviceScaleFactor=1,
        mobile=reader.width < 600,
    )
    scheme = {"name": "prefers-color-scheme", "value": reader.scheme}
    await ask("Emulation.setEmulatedMedia", features=[scheme])
    if not reader.scripts:
        await ask("Emulation.setScriptExecutionDisabled", value=True)
    await ask("Page.navigate", url=address)
    while not loaded.is_set():
        note(await socket.receive_json())
    for expression in expressions:
        asked = await ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in asked, asked
        seen.answers.append(asked["result"].get("value"))
    size = (await ask("Page.getLayoutMetrics"))["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    taken = await ask("Page.captureScreenshot", captureBeyondViewport=True, **({"clip": clip} if reader.whole else {}))
    seen.png = base64.b64decode(taken["data"])
    await ask("Runtime.evaluate", expression="0")  # what the page still had to say comes before the answer
    session = ""
    await ask("Target.closeTarget", targetId=target["targetId"])
    return seen


def photograph(page: Path, out: Path) -> None:
    """`page` on a desk in light and on a phone in dark, side by side in one small picture."""
    desk, phone = (
        Reader(width=1120, height=1240, whole=False),
        Reader(width=390, height=1240, scheme="dark", whole=False),
    )
    both = [Image.open(io.BytesIO(seen.png)) for seen in look_often(page, [desk, phone])]
    picture = Image.new("RGB", (sum(one.width for one in both), desk.height))
    for one, left in zip(both, (0, both[0].width), strict=True):
        picture.paste(one, (left, 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
