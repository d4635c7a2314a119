"""`privet audit`: verify a ledger by nothing but its file, a public key and a witness; fetch a witness, show a key."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ..budget.keys import SigningKey
from ..errors import PrivetError, UsageError
from .claims import app_lines, as_json, claims_of, operator_lines, refusal_lines, sentences, verdict
from .keyfile import fingerprint, pem_of, read_public_key, read_root
from .permissions import decision_line, permission_lines
from .recomputed import LowerEstimate
from .replay import Audit, audit_ledger

_MOST_LINES = 20  # of a kind, on a terminal; --json and --report have them all
_HOME = "PRIVET_HOME"
_WITNESS_BYTES = 2**30  # of a witness file; a head has some 500 bytes

# Where further accountants come from: privacy knows no torch, so the program's door hands them in.
FindChecks = Callable[[], Sequence[LowerEstimate]]


class AuditFailedError(PrivetError):
    """A ledger with violations, all of them printed."""


def audit_app(find_checks: FindChecks = tuple) -> typer.Typer:
    """The commands. `find_checks` gives the accountants that are installed besides PLD and RDP."""
    app = typer.Typer(help="Verify a ledger, offline and without trusting it.", no_args_is_help=True)

    @app.command("ledger")
    def ledger(
        file: Annotated[Path, typer.Argument(help="The ledger's file.", metavar="FILE")],
        witness: Annotated[Path | None, typer.Option(help="The server's witness file of this node.")] = None,
        key: Annotated[Path | None, typer.Option(help="The institution's public key: PEM or 64 hex digits.")] = None,
        root: Annotated[
            Path | None, typer.Option(help="The federation's root certificate (identity/root.pem).")
        ] = None,
        report: Annotated[Path | None, typer.Option(help="Write a page for a data protection officer.")] = None,
        decisions: Annotated[bool, typer.Option("--decisions", help="List every decision of the policy.")] = False,
        json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Replay a ledger: chain, signatures, operators, decisions, charges, rounds; say what it claims."""
        _check_report(report, (file, witness, key, root))
        public = read_public_key(key) if key else None
        with _progress() as progress:
            audit = audit_ledger(
                file,
                public_key=public,
                witness=witness,
                root=read_root(root) if root else None,
                progress=progress,
                checks=find_checks(),
            )
        claims = claims_of(audit)
        if report is not None:
            from .report import write_report

            write_report(audit, claims, report)
        if json_:
            print(json.dumps(as_json(audit, claims)))
        else:
            print("\n".join(_lines(audit, is_every_decision=decisions)))
        if not audit.holds:
            raise AuditFailedError(
                f"{file}: {sum(audit.counts.values())} violations",
                "keep the file as evidence, and ask the institution for the entries that are named",
            )

    @app.command("key")
    def show_key(
        home: Annotated[Path | None, typer.Option(envvar=_HOME, help="The institution's folder.")] = None,
        passphrase_file: Annotated[Path | None, typer.Option(help="The key's passphrase, in a file.")] = None,
    ) -> None:
        """Print this institution's public key, to hand over to an auditor."""
        folder = home or Path.home() / ".privet"
        public = SigningKey.load(folder / "key.pem", _passphrase(passphrase_file)).public
        print(f"# privet public key {public}\n# fingerprint {fingerprint(public)}\n{pem_of(public)}", end="")

    @app.command("witness")
    def fetch_witness(
        node: Annotated[str, typer.Argument(help="The node's name.", metavar="NODE")],
        out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.", metavar="FILE")],
        force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
        passphrase_file: Annotated[Path | None, typer.Option(help="The key's passphrase, in a file.")] = None,
        json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Fetch what the server remembers of a node's ledger, to audit the ledger against it."""
        from ..channel.control_client import control_of
        from ..channel.download import check_target, download
        from ..home import Home

        check_target(out, force)
        _, client = control_of(Home.of(os.environ).root, _passphrase(passphrase_file))
        size = download(client.witness(node), out, most=_WITNESS_BYTES, sha256=None, is_forced=force)
        if json_:
            print(json.dumps({"node": node, "file": str(out), "bytes": size}))
        else:
            print(f"wrote {out}: {size} bytes; next: privet audit ledger FILE --witness {out}")

    return app


def _lines(audit: Audit, *, is_every_decision: bool) -> list[str]:
    claims = claims_of(audit)
    owner = f"{claims.purpose} ledger of {claims.owner}" if claims.owner else "a ledger without an opening"
    lines = [verdict(audit), f"ledger: {owner}"]
    if claims.purpose == "simulation":
        lines.append(f"note: {claims.excluded[0]}")
    if audit.public_key:
        lines.append(f"key: {audit.public_key}, fingerprint {fingerprint(audit.public_key)}")
    for account in claims.accounts:
        lines += sentences(account)
    lines += [
        *operator_lines(audit),
        *app_lines(claims.apps, _MOST_LINES),
        f"trust: {claims.trust}",
        f"released: {claims.releases} answers",
        *refusal_lines(audit.history, _MOST_LINES),
        *permission_lines(audit.history, _MOST_LINES),
        *(f"decision: {decision_line(found)}" for found in audit.history.decisions if is_every_decision),
        f"accountants: PLD, RDP as upper bound{', PRV as lower estimate' if audit.checks else ''}",
        *(f"assumed: {words}" for words in claims.assumed),
        *(f"excluded: {words}" for words in claims.excluded),
        *(f"note: {note}" for note in audit.notes),
        *(f"violation: {violation}" for violation in audit.violations),
    ]
    dropped = sum(audit.counts.values()) - len(audit.violations)
    return [*lines, *([f"violation: {dropped} more like these"] if dropped else [])]


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _check_report(report: Path | None, inputs: Sequence[Path | None]) -> None:
    if report is None:
        return
    if any(path is not None and path.exists() and report.exists() and path.samefile(report) for path in inputs):
        raise UsageError(f"--report {report} would overwrite what is audited", "give another name")
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise UsageError(f"--report {report}: not a file that can be written", "give a file in a folder that is there")


def _passphrase(path: Path | None) -> bytes | None:
    if path is not None:
        return path.read_bytes().rstrip(b"\r\n") or None
    return os.environ.get("PRIVET_PASSPHRASE", "").encode() or None
