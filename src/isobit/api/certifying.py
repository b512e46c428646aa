"""certify and check_certificate: what a checkpoint lost, kept beside its weights, and measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isobit import arguments
from isobit.api.evaluating import require_fit
from isobit.api.finding import default_name, device_and_target, find, model_named
from isobit.errors import IsobitError, UsageError
from isobit.formats.caches import cache_format

if TYPE_CHECKING:
    from isobit.evaluation.certificate import Certificate, Row
    from isobit.evaluation.certify import Checked
    from isobit.evaluation.corpus import Corpus
    from isobit.evaluation.measure import Source


def certify(
    model: str | Path,
    against: str | Path,
    *,
    text: str | Path | None = None,
    ctx: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    target: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
    memory: int | str | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Certificate, Row, tuple[str, ...]]:
    """Measure what a checkpoint lost, and keep it beside its weights as ``isobit_certificate.json``.

    A row of the certificate is of one execution path (device, target, kernels, cache) and one text: what was measured
    alike before is replaced, the rest stays, so that the rows of a GPU and of a CPU come together one after the other.

    Args:
        model: a local folder; the certificate is written into it.
        against: its source.
        text, ctx, stride, tokens, seed, device, target, kv_cache, batch_invariant, memory, command, progress: as
            :func:`isobit.evaluate` takes them.

    Returns:
        The certificate, the row that is new, and what people should know.

    Raises:
        IsobitError: bad input, models that cannot be compared, or a folder that cannot be written.
    """
    names = model_named("model", model), model_named("against", against)
    from isobit.evaluation.asking import TextSettings

    settings = TextSettings.checked(text, ctx, stride, tokens, seed, command, progress)
    most = arguments.optional_memory("memory", memory)
    alike = arguments.optional_flag("batch_invariant", batch_invariant)
    cache_format(kv_cache)
    where = device_and_target(device, target)
    folder = _own(names[0])
    from isobit.evaluation import certify as measuring
    from isobit.evaluation.measure import Source

    source = Source(find(against), default_name(names[1]), **where, batch_invariant=alike)
    require_fit([folder, source.path], device, target, most, kv_cache)
    asked = settings.asked(**where, kv_cache=kv_cache, batch_invariant=alike)
    return measuring.certify(folder, default_name(names[0]), source, asked)


def check_certificate(
    model: str | Path,
    against: str | Path,
    *,
    text: str | Path | None = None,
    memory: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Certificate, list[Checked]]:
    """Hold a certificate against the files it names, and measure each of its rows again that can be measured here.

    Args:
        model: a local folder with a certificate.
        against: its source.
        text: the text of rows that were not measured on the held-out code that comes with isobit.
        memory: see :func:`isobit.evaluate`.
        progress: called with (windows done, windows in all) as they are done.

    Raises:
        IsobitError: there is no certificate, it is of other files, or of another source.
    """
    names = model_named("model", model), model_named("against", against)
    file = arguments.optional_path("text", text)
    most = arguments.optional_memory("memory", memory)
    folder, origin = _own(names[0]), find(against)
    from isobit.evaluation import certify as measuring
    from isobit.evaluation import corpus as texts
    from isobit.evaluation.measure import Source
    from isobit.evaluation.work import text_digest

    known = {
        text_digest(*one.documents): one
        for one in (texts.heldout(), *(() if file is None else (texts.read_corpus(Path(file)),)))
    }

    def corpus(digest: str) -> Corpus | None:
        return known.get(digest)

    def source(row: Row) -> Source:
        return Source(origin, default_name(names[1]), row.path.device, _lowering(row), row.path.batch_invariant)

    def usable(row: Row) -> str | None:
        try:
            device_and_target(row.path.device, _lowering(row))
            require_fit([folder, origin], row.path.device, _lowering(row), most, row.kv_cache)
        except IsobitError as error:
            return str(error)
        return None

    return measuring.check(folder, default_name(names[0]), source, corpus, usable, progress)


def _own(name: str) -> Path:
    """A local folder that may get a certificate."""
    if name == "bundled":
        raise UsageError("`bundled` is a source and comes with isobit: certify what was made from it")
    if not Path(name).expanduser().exists():
        raise UsageError(f"{name} is not on this machine: a certificate is written beside the weights, into a folder")
    folder = find(name)
    if not folder.is_dir():
        raise UsageError(f"{name} is a file: a certificate lies in a checkpoint's folder; make one of it first")
    return folder


def _lowering(row: Row) -> str | None:
    """Whose lowering measured a row: named, so that another GPU runs the same one."""
    return row.path.target if row.path.device != "cpu" else None
