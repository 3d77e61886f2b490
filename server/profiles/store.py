"""The profiles in force in one API process, and how they are replaced: all of them, or none."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from server.policy import ServerSettings
from server.profiles.book import ProfileBook, load_book
from server.profiles.format import Fingerprint, Profile

logger = logging.getLogger(f"vllm.{__name__}")
POLL_SECONDS = 1.0
_Signature = tuple[tuple[int, int, int] | None, ...]


class ProfileStore:
    """Holds a book that passed every check; a file that does not pass leaves it where it is.

    A changed file is taken up by each API process on its own, once it has been the same for two looks, so that a file
    that is still being written is not read. That is what keeps several processes in step: a signal or a reload request
    reaches one of them.

    Args:
        settings: the server's.
        own: the checkpoint's profile, if it has one.
        config: digest of the encoder's configuration.

    Raises:
        ValueError: the file is wrong, or a profile was calibrated for another encoder.
    """

    def __init__(self, settings: ServerSettings, own: Profile | None, config: str) -> None:
        self._settings, self._own, self._config = settings, own, config
        self._encoder: Fingerprint | None = None
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[ProfileBook], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.rejected: str | None = None
        self._read_at = self._signature(())
        self.book = load_book(settings, own)
        self._read_at = self._signature(self.book.files)
        self.measured = self.book.candidates
        self.book.check(self.measured, config, None)

    def subscribe(self, listener: Callable[[ProfileBook], None]) -> None:
        """Call the listener with the book in force, now and whenever it is replaced."""
        self._listeners.append(listener)
        listener(self.book)

    def know_encoder(self, encoder: Fingerprint) -> None:
        """From now on profiles must be of this encoder, too.

        Raises:
            ValueError: one in force is of another.
        """
        self._encoder = encoder
        self.book.check(self.measured, self._config, encoder)

    async def reload(self) -> ProfileBook:
        """Read the file again.

        Raises:
            ValueError: it is refused, and what was in force still is; says why.
        """
        async with self._lock:
            try:
                book = await asyncio.to_thread(self._read)
            except ValueError as error:
                self.rejected = str(error)
                logger.warning("dfmr: profiles were not reloaded, the old ones stay in force: %s", error)
                raise
            self.book, self.rejected = book, None
            for listener in self._listeners:
                listener(book)
        logger.info("dfmr: profiles in force: %s", ", ".join(book.entries))
        return book

    def start(self) -> None:
        """Reload on SIGHUP and when the file changes, for as long as the running event loop lasts."""
        if self._settings.profiles is None:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_and_log()))
        self._spawn(self._watch())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_and_log(self) -> None:
        with contextlib.suppress(ValueError):
            await self.reload()

    async def _watch(self) -> None:
        seen = self._read_at
        while True:
            await asyncio.sleep(POLL_SECONDS)
            now = await asyncio.to_thread(self._signature, self.book.files)
            if now == seen and now != self._read_at:
                await self._reload_and_log()
            seen = now

    def _read(self) -> ProfileBook:
        self._read_at = self._signature(self.book.files)
        book = load_book(self._settings, self._own)
        book.check(self.measured, self._config, self._encoder)
        self._read_at = self._signature(book.files)
        return book

    def _signature(self, files: tuple[Path, ...]) -> _Signature:
        """What tells one version of the files from another, without reading them."""

        def one(path: Path) -> tuple[int, int, int] | None:
            try:
                stat = path.stat()
            except OSError:
                return None
            return stat.st_mtime_ns, stat.st_size, stat.st_ino

        own = (Path(self._settings.profiles),) if self._settings.profiles else ()
        return tuple(one(path) for path in dict.fromkeys((*own, *files)))
