"""The help of every command: its docstring, laid out for any width, and its examples.

The examples are one table, so that a test can parse each example with its command.
"""

from __future__ import annotations

import inspect

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "worker": (
        "postback worker --engine echo",
        "postback worker --engine vllm --model google/gemma-3-270m-it --with-delivery",
        "postback worker --engine vllm --model google/gemma-3-270m-it --check",
        "postback worker --engine vllm --model google/gemma-3-1b-it --shadow",
    ),
    "deliver": ("postback deliver --metrics-port 9464",),
    "store upgrade": ("postback store upgrade --store sqlite:///postback.db",),
    "store rebuild": ("postback store rebuild --store sqlite:///postback.db",),
    "gateway": (
        "postback gateway --port 8443 --tls-cert door.pem --tls-key door.key",
        "POSTBACK_ENV=development postback gateway --port 8080 --store sqlite:///postback.db",
    ),
    "exporter": ("postback exporter --port 9465", "postback exporter --host 0.0.0.0 --port 9465"),
    "api-keys create": (
        "postback api-keys create --tenant acme --expires 90d --label ci",
        "postback api-keys create --tenant acme --scopes submit,read --json",
    ),
    "api-keys list": ("postback api-keys list --tenant acme",),
    "api-keys revoke": ("postback api-keys revoke 0123456789abcdef",),
    "tenants put": (
        """postback tenants put acme '{"requests_per_second": 50, "queued_lines": 100000}'""",
        "cat settings.json | postback tenants put acme -",
    ),
    "tenants show": ("postback tenants show acme",),
    "tenants list": ("postback tenants list",),
    "tenants remove": ("postback tenants remove acme",),
    "topics create": ("postback topics create", "postback topics create --partitions 64 --raise-partitions"),
    "models list": ("POSTBACK_WORKER__REGISTRY=models.toml postback models list",),
    "models check": (
        "postback models check --file models.toml",
        "postback models check --file models.toml --without-secrets --json",
    ),
    "models show": ("postback models show small --file models.toml",),
    "rollout start": ("postback rollout start --alias default --candidate google/gemma-3-1b-it --sample 0.1",),
    "rollout status": ("postback rollout status --json", "postback rollout status --report rollout.html"),
    "rollout promote": ("postback rollout promote --alias default",),
    "rollout abort": ("postback rollout abort",),
    "keys init": ("POSTBACK_KEYRING=$HOME/keyring.json postback keys init",),
    "keys show": ("postback keys show --tenant acme --reveal", "postback keys show --tenant acme --jwks > jwks.json"),
    "keys rotate": ("postback keys rotate --tenant acme --overlap 48h",),
    "keys migrate": ("postback keys migrate --overlap 7d",),
    "keys import": ("postback keys import --tenant acme --file secret.txt",),
    "submit": (
        "postback submit jobs.jsonl --callback-url https://example.com/hook --receipt receipt.jsonl",
        """echo '{"prompt": "What is a webhook?"}' | postback submit - --wait""",
        "postback submit jobs.jsonl --gateway https://postback.example --key @key.txt --wait",
    ),
    "cancel": (
        "postback cancel job-1 job-2",
        "postback cancel --ids receipt.jsonl --gateway https://postback.example",
    ),
    "batches create": (
        "postback batches create requests.jsonl --gateway https://postback.example --output answers.jsonl",
    ),
    "batches wait": ("postback batches wait batch_1 --gateway https://postback.example --output answers.jsonl",),
    "batches list": ("postback batches list --gateway https://postback.example --json",),
    "batches show": ("postback batches show batch_1 --gateway https://postback.example",),
    "batches cancel": ("postback batches cancel batch_1 --gateway https://postback.example",),
    "files list": ("postback files list --gateway https://postback.example --purpose batch_output",),
    "files upload": ("postback files upload requests.jsonl --gateway https://postback.example --key @key.txt",),
    "files show": ("postback files show file-1 --gateway https://postback.example",),
    "files download": ("postback files download file-1 --gateway https://postback.example --output answers.jsonl",),
    "files delete": ("postback files delete file-1 --gateway https://postback.example",),
    "results": (
        "postback results --ids receipt.jsonl --wait --output results.jsonl",
        "postback results --since -2h --status",
        "postback results --id job-1 --gateway https://postback.example --wait",
    ),
    "status": ("postback status job-1 job-2 --gateway https://postback.example",),
    "deliveries": ("postback deliveries job-1",),
    "replay": (
        "postback replay --tenant acme --since -2h --dry-run",
        "postback replay --tenant acme --since -7d --undelivered",
    ),
    "verify-answer": ("postback verify-answer result.json", "postback verify-answer event.json --json"),
    "doctor": (
        "postback doctor",
        "postback doctor --role worker --engine vllm --model ./model --json",
        "postback doctor --role deliver --callback-url https://example.com/hook",
    ),
    "tail": ("postback tail --tenant acme --outcome failed", "postback tail --since -10m --json"),
    "top": ("postback top", "postback top --once --metrics http://127.0.0.1:9464/metrics"),
    "backlog": ("postback backlog",),
    "bench-fleet": (
        "postback bench-fleet --model echo --jobs 1000",
        "postback bench-fleet --model small --rate 20 --host 0.0.0.0 --port 8080 --callback-url https://bench.example/",
    ),
    "trace": ("postback trace job-1", "postback trace job-1 --tenant acme --json"),
    "dead-letters list": ("postback dead-letters list --tenant acme",),
    "dead-letters show": ("postback dead-letters show 0:7",),
    "dead-letters redrive": ("postback dead-letters redrive --tenant acme --limit 10",),
    "endpoints list": ("postback endpoints list",),
    "endpoints enable": ("postback endpoints enable https://example.com/hook --tenant acme",),
    "endpoints disable": ("postback endpoints disable https://example.com/hook --tenant acme",),
    "certs init": ("postback certs init ca", "postback certs init ca --name 'Acme CA' --days 1825"),
    "certs issue": (
        "postback certs issue ca gateway --server --san gateway.example.com --san 10.0.0.7",
        "postback certs issue ca acme-1 --client --tenant acme --scopes submit,read",
    ),
    "certs renew": ("postback certs renew ca gateway", "postback certs renew ca acme-1 --days 30 --revoke"),
    "certs revoke": ("postback certs revoke ca acme-1 --reason keyCompromise",),
    "certs crl": ("postback certs crl ca",),
    "certs list": ("postback certs list ca",),
    "cache invalidate": (
        "postback cache invalidate https://example.com/page",
        "postback cache invalidate --host example.com",
    ),
    "demo": ("postback demo --engine echo --jobs 200",),
    "broker start": ("postback broker start", "postback broker start --port 9100 --data ./kafka"),
    "broker stop": ("postback broker stop",),
    "receive": ("postback receive --port 8080 --tenant acme", "postback receive --port 8080 --secret @secret.txt -v"),
    "trigger": (
        "postback trigger --url https://example.com/hook --tenant acme",
        "POSTBACK_ENV=development postback trigger --url http://127.0.0.1:8080/ --outcome failed --secret @secret.txt",
    ),
}
"""Each command's examples, by its full name. No example has square brackets, which rich would read as markup."""


def complete_help(app: typer.Typer) -> None:
    """Lay out the help of every command that is registered with the app and its groups, and add the examples."""
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _complete(group.typer_instance, f"{group.name} ")
    _complete(app, "")


def _complete(app: typer.Typer, prefix: str) -> None:
    for command in app.registered_commands:
        function = command.callback
        name = command.name or (function.__name__.replace("_", "-") if function is not None else "")
        command.help = command.help or _flowing(inspect.getdoc(function) or "")
        examples = EXAMPLES.get(f"{prefix}{name}", ())
        title = "Example:" if len(examples) == 1 else "Examples:"
        command.epilog = "\n".join((title, *examples)) if examples else None


def _flowing(docstring: str) -> str:
    """Join each paragraph into one line, since typer keeps line breaks, and a terminal may be narrow."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))
