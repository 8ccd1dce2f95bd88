"""Sections 1, 10 and 11: names and import paths."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings

import pytest
import torch

import nnsight_dsl
from nnsight_dsl import compat
from tests import models
from tests.waiting import PATIENCE

PATHS = """
nnsight: CONFIG DiffusionModel Envoy LanguageModel NNsight NNsightDeprecationWarning Object
nnsight: TransformersModel VisionLanguageModel compare is_model_running login ndif_status register
nnsight: save status whoami __version__ __all__ ndif modeling intervention util
nnsight.modeling.base: NNsight
nnsight.modeling.language: LanguageModel
nnsight.modeling.transformers: TransformersModel WrapperModule Generator
nnsight.modeling.vlm: VisionLanguageModel
nnsight.modeling.diffusion: DiffusionModel
nnsight.modeling.huggingface: HuggingFaceModel
nnsight.intervention.envoy: Envoy
nnsight.intervention.interleaver: OutOfOrderError EarlyStopException Mediator Interleaver Event
nnsight.intervention.source: SourceNotAvailable Source SourceEnvoy
nnsight.intervention.tracer: InterleavingTracer ScanningTracer Invoker
nnsight.intervention.cache: Entry Cache CacheView
nnsight.intervention.barrier: Barrier
nnsight.intervention.iterator: Iterations
nnsight.intervention.editing: EditingTracer
nnsight.intervention.tracing.globals: Object
nnsight.intervention.backends.remote: RemoteBackend AsyncRemoteBackend RemoteError
nnsight.tracing.tracer: Tracer save WithBlockNotFoundError ExitTracingException
nnsight.schema.config: Config ApiConfig AppConfig
nnsight.util: apply
nnsight.ndif: register get_local_env NdifStatus
"""


@pytest.mark.parametrize("line", PATHS.split("\n")[1:-1])
@pytest.mark.usefixtures("as_08")
def test_row_names_and_import_paths(line: str) -> None:
    module, _, names = line.partition(": ")
    for name in names.split():
        assert getattr(importlib.import_module(module), name) is not None, name


@pytest.mark.usefixtures("as_08")
def test_every_name_of_the_table_leads_somewhere() -> None:
    from nnsight_dsl.compat.names import NAMES

    for dialect in compat.VERSIONS:
        compat.install(dialect)
        for module in NAMES:
            if module == "nnsight.modeling.vllm":
                continue
            for name in importlib.import_module(module).__all__:
                getattr(importlib.import_module(module), name)


@pytest.mark.usefixtures("as_08")
def test_row_version_spec_metadata_and_star() -> None:
    import nnsight

    assert nnsight.__version__ == "0.8.1"
    assert importlib.metadata.version("nnsight") == "0.8.1"
    assert importlib.util.find_spec("nnsight") is not None
    assert importlib.util.find_spec("nnsight.no_such") is None
    assert nnsight.__spec__.name == "nnsight"
    names: dict[str, object] = {}
    exec("from nnsight import *", names)
    assert names["TransformersModel"] is nnsight.TransformersModel
    assert {"NNsight", "save", "CONFIG", "Envoy"} <= names.keys()


@pytest.mark.usefixtures("as_06")
def test_row_version_of_06() -> None:
    import nnsight

    assert nnsight.__version__ == importlib.metadata.version("nnsight") == "0.6.0"
    with pytest.warns(DeprecationWarning, match="list"):
        assert nnsight.list((1,)) == [1]


def test_a_version_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.8 or 0\.6"):
        compat.install("0.7")


def test_row_removed_names_say_so_in_their_attribute_error(as_08: None) -> None:
    import nnsight

    for name in ("list", "apply", "cond", "local", "session", "trace", "log"):
        with pytest.raises(AttributeError, match="removed before"):
            getattr(nnsight, name)
    with pytest.raises(AttributeError, match=r"nnsight\.modeling\.vllm"):
        nnsight.VLLM
    with pytest.raises(ImportError, match="no_such"):
        exec("from nnsight import no_such")


def test_a_module_that_is_missing_on_purpose_says_so(as_08: None) -> None:
    with pytest.raises(ModuleNotFoundError, match="missing on purpose"):
        importlib.import_module("nnsight.intervention.serialization")
    with pytest.raises(AttributeError, match="on purpose"):
        importlib.import_module("nnsight.intervention").serialization
    with pytest.raises(AttributeError, match="on purpose"):
        importlib.import_module("nnsight.tracing.tracer").mark


def test_an_inert_class_says_what_it_is_when_it_is_made(as_08: None) -> None:
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.intervention.interleaver import Mediator

    assert not isinstance(1, Mediator)
    with pytest.raises(NotImplementedError, match="a driver in its place"):
        Mediator()
    with pytest.raises(NotImplementedError, match="remote execution is not built"):
        RemoteBackend("key")


def test_functions_of_remote_execution_are_inert_or_refused(as_08: None) -> None:
    import nnsight

    assert nnsight.register("mine") is None
    assert nnsight.is_model_running("openai-community/gpt2") is False
    for name in ("login", "whoami", "status", "ndif_status", "compare"):
        with pytest.raises(NotImplementedError, match="not built"):
            getattr(nnsight, name)()


def test_row_config(as_08: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight import CONFIG

    assert CONFIG.API.HOST == "https://api.ndif.us"
    assert CONFIG.API.COMPRESS is True
    CONFIG.set_default_api_key("key")
    assert CONFIG.API.APIKEY == "key"
    monkeypatch.setattr(nnsight_dsl.CONFIG.APP, "REMOTE_LOGGING", True)
    CONFIG.APP.REMOTE_LOGGING = False
    assert nnsight_dsl.CONFIG.APP.REMOTE_LOGGING is False
    CONFIG.APP.DISABLE_CPP_BACKTRACE = False
    with pytest.raises(AttributeError):
        CONFIG.APP.NO_SUCH = 1
    CONFIG.API.APIKEY = None


def test_row_attributes_of_a_model(tmp_path) -> None:
    models.new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    compat.install()
    try:
        from nnsight import TransformersModel

        model = TransformersModel(
            str(tmp_path), task="text-generation", tokenizer_kwargs={"padding_side": "right"}
        )
        assert model.repo_id == str(tmp_path)
        assert model.args == (str(tmp_path),)
        assert model.kwargs["tokenizer_kwargs"] == {"padding_side": "right"}
        assert model.tokenizer.padding_side == "right"
        assert model.dispatched is False
        # r03: set before the weights are there, and kept
        model.depth = 4
        with model.trace(models.SHORT):
            model.transformer.h[0].output.save()
        assert model.dispatched is True
        assert model.depth == 4
        assert model._model is model._module
        with pytest.raises(ValueError, match="the task 'fill-mask' was given"):
            TransformersModel(str(tmp_path), task="fill-mask")
    finally:
        compat.uninstall()


def test_row_language_model_warns_at_the_users_line(as_08: None) -> None:
    from nnsight import LanguageModel, NNsightDeprecationWarning, TransformersModel

    assert issubclass(NNsightDeprecationWarning, FutureWarning)
    with pytest.warns(NNsightDeprecationWarning, match="TransformersModel") as caught:
        model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    assert caught[0].filename == __file__
    assert isinstance(model, (TransformersModel, nnsight_dsl.LanguageModel))

    class Mine(LanguageModel):
        def __init__(self, module) -> None:
            super().__init__(module, tokenizer=models.tokenizer())
            self.mine = 1

    with pytest.warns(NNsightDeprecationWarning) as caught:
        assert Mine(models.new_gpt2()).mine == 1
    assert caught[0].filename == __file__


def test_row_language_model_of_06_does_not_warn(as_06: None) -> None:
    from nnsight import LanguageModel, NNsight

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    assert isinstance(model, NNsight)


def test_row_envoys_are_of_the_class_envoy(gpt2) -> None:
    from nnsight import Envoy, NNsight

    assert isinstance(gpt2, NNsight)
    assert isinstance(gpt2.transformer.h[0], Envoy)


def test_row_out_of_order_and_never_called_are_one_class(gpt2) -> None:
    from nnsight.intervention.interleaver import OutOfOrderError

    with pytest.raises(OutOfOrderError, match="already passed"):
        with gpt2.trace(models.SHORT):
            late = gpt2.transformer.h[1].output.save()
            early = gpt2.transformer.h[0].output.save()
    gpt2.unused = torch.nn.Linear(2, 2)
    with pytest.raises(OutOfOrderError, match="never computed"):
        with gpt2.trace(models.SHORT):
            never = gpt2.unused.output.save()


def test_row_never_called_is_another_class_in_06(gpt2_06) -> None:
    from nnsight.intervention.interleaver import OutOfOrderError

    gpt2_06.unused = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="never computed") as caught:
        with gpt2_06.trace(models.SHORT):
            never = gpt2_06.unused.output.save()
    assert not isinstance(caught.value, OutOfOrderError)


def test_row_backend_none_and_remote_false_are_passed_on(gpt2) -> None:
    # r06
    def lens(remote=False, backend=None):
        with gpt2.trace(models.SHORT, remote=remote, backend=backend, blocking=True):
            logits = gpt2.lm_head.output.save()
        return logits.shape

    assert lens()[0] == 1
    with pytest.raises(TypeError, match="backend"):
        lens(backend=object())
    with pytest.raises(NotImplementedError, match="remote"):
        lens(remote=True)


def test_row_no_such_source(gpt2) -> None:
    from nnsight.intervention.source import SourceNotAvailable

    with pytest.raises(SourceNotAvailable, match="has its own source"):
        with gpt2.trace(models.SHORT):
            text = str(gpt2.transformer.h[0].source.self_mlp_0.source)


def test_row_no_block(as_08: None) -> None:
    from nnsight import NNsight
    from nnsight.tracing.tracer import WithBlockNotFoundError

    names = {"model": NNsight(torch.nn.Linear(2, 2)), "x": torch.ones(1, 2)}
    with pytest.raises(WithBlockNotFoundError):
        exec("with model.trace(x):\n    h = model.output.save()\n", names)


def test_row_util_apply(as_08: None) -> None:
    from nnsight.util import apply

    given = [torch.ones(1), {"a": (torch.ones(1), "text")}]
    found = apply(given, lambda tensor: tensor + 1, torch.Tensor)
    assert found[0] == 2
    assert found[1]["a"][0] == 2
    assert found[1]["a"][1] == "text"
    assert given[0] == 1
    assert apply(given, lambda tensor: tensor * 5, torch.Tensor, inplace=True) is given
    assert given[0] == 5


def test_importing_nnsight_imports_no_torch() -> None:
    text = (
        "import nnsight_dsl.compat as compat, sys\n"
        "compat.install(lazily=True)\n"
        "import nnsight\n"
        "import importlib.metadata as metadata\n"
        "print(nnsight.__version__, metadata.version('nnsight'), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == "0.8.1 0.8.1 False\n"
