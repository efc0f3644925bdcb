"""What each part runs on: the options that onnxruntime gets, and what happens where it does not do as asked."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.sdk.fake_onnxruntime import CPU, CUDA, TENSORRT, OrtValue, install
from tvp import sdk
from tvp.export.bundle import export
from tvp.sdk._runtime import sessions
from tvp.sdk._runtime.providers import PARTS, choose_providers, make_plan
from tvp.sdk.errors import ProviderError
from tvp.trainer import tasks

PICTURE = np.zeros((10, 10, 3), np.uint8)
CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
}
VISION_ENCODER, DECODER = "vision_encoder.onnx", "decoder_model_merged.onnx"


def tensorrt_options(cache, fp16="False"):
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache / "onnxruntime-9.9.9"),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache / "onnxruntime-9.9.9"),
        "trt_layer_norm_fp32_fallback": "True",
        "trt_fp16_enable": fp16,
    }


@pytest.fixture
def gpu(monkeypatch):
    return install(monkeypatch, TENSORRT, CUDA, CPU)


@pytest.fixture
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TVP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def choices(wanted, cache, precision="fp32"):
    return {part: choose_providers(wanted, part, cache, precision) for part in PARTS}


def test_auto_is_the_cpu_alone_where_nothing_else_is(monkeypatch, tmp_path):
    install(monkeypatch, "AzureExecutionProvider", CPU)
    assert choices("auto", tmp_path) == {part: [(CPU, {})] for part in PARTS}


@pytest.mark.parametrize("wanted", ["auto", "cuda", CUDA, "CUDA", ["cuda"], ["cuda", "cpu"], {}, {"decoder": "cuda"}])
def test_cuda_takes_all_but_the_preprocessing(gpu, tmp_path, wanted):
    found = choices(wanted, tmp_path)
    assert found.pop("preprocess") == [(CPU, {})]
    assert found == {part: [(CUDA, CUDA_OPTIONS), (CPU, {})] for part in PARTS[1:]}


@pytest.mark.parametrize("wanted", ["tensorrt", ["tensorrt"], ("tensorrt", {}), ["tensorrt", "cuda"]])
def test_tensorrt_takes_the_encoder_and_cuda_the_rest(gpu, tmp_path, wanted):
    found = choices(wanted, tmp_path)
    assert found.pop("preprocess") == [(CPU, {})]
    rest = [(CUDA, CUDA_OPTIONS), (CPU, {})]
    assert found.pop("vision_encoder") == [(TENSORRT, tensorrt_options(tmp_path)), *rest]
    assert found == dict.fromkeys(("connector", "encoder", "decoder", "text_encoder"), rest)


def test_tensorrt_computes_in_half_precision_for_a_base_of_it_only(gpu, tmp_path):
    for precision, fp16 in (("fp16", "True"), ("fp32", "False"), ("int8", "False")):
        found = choose_providers("tensorrt", "vision_encoder", tmp_path, precision)
        assert found[0] == (TENSORRT, tensorrt_options(tmp_path, fp16))


def test_tensorrt_without_cuda_leaves_the_rest_to_the_cpu(monkeypatch, tmp_path):
    install(monkeypatch, TENSORRT, CPU)
    found = choices("tensorrt", tmp_path)
    assert [name for name, _ in found["vision_encoder"]] == [TENSORRT, CPU]
    assert found["decoder"] == [(CPU, {})]


def test_several_are_taken_as_given(gpu, tmp_path):
    found = choices(["tensorrt", "cpu"], tmp_path)
    assert [name for name, _ in found["vision_encoder"]] == [TENSORRT, CPU]
    assert found["decoder"] == [(CPU, {})]


def test_a_users_options_go_before_ours(gpu, tmp_path):
    found = choose_providers(("cuda", {"use_tf32": 1, "gpu_mem_limit": 2**30}), "decoder", tmp_path)
    assert found == [(CUDA, {**CUDA_OPTIONS, "use_tf32": "1", "gpu_mem_limit": "1073741824"}), (CPU, {})]
    wanted = ("tensorrt", {"device_id": 1, "trt_fp16_enable": True, "trt_engine_cache_path": "elsewhere"})
    own = {"device_id": "1", "trt_fp16_enable": "True", "trt_engine_cache_path": "elsewhere"}
    cuda = (CUDA, {**CUDA_OPTIONS, "device_id": "1"})  # on the same device
    found = choices(wanted, tmp_path)
    assert found["vision_encoder"] == [(TENSORRT, {**tensorrt_options(tmp_path), **own}), cuda, (CPU, {})]
    assert found["decoder"] == [cuda, (CPU, {})]
    assert choices("cuda", tmp_path)["decoder"][0] == (CUDA, CUDA_OPTIONS)  # ours are as they were


def test_each_part_has_a_choice_of_its_own(gpu, tmp_path):
    wanted = {"vision_encoder": "tensorrt", "decoder_model_merged": ["cpu"], "encoder": ("cuda", {"device_id": 2})}
    found = choices(wanted, tmp_path)
    assert [name for name, _ in found["vision_encoder"]] == [TENSORRT, CUDA, CPU]
    assert found["decoder"] == found["preprocess"] == [(CPU, {})]
    assert found["encoder"] == [(CUDA, {**CUDA_OPTIONS, "device_id": "2"}), (CPU, {})]
    assert found["connector"] == [(CUDA, CUDA_OPTIONS), (CPU, {})]  # not named, so as with auto
    assert choose_providers(wanted, "encoder_model", tmp_path) == found["encoder"]
    assert choices({"preprocess": "cpu"}, tmp_path)["preprocess"] == [(CPU, {})]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("cudaa", r"'cudaa' is not available.*Tensorrt.*Did you mean cuda"),
        (["cpu", "OpenVINOExecutionProvider"], r"'OpenVINOExecutionProvider' is not available"),
        (["cuda", CUDA], "given twice"),
        ([], "No provider"),
        ({"decoder": []}, "No provider"),
        ({"decoder": None}, "providers is None"),
        ({"decoder": [("cuda", 3)]}, "is not a provider"),
        ({"decodr": "cuda"}, r"'decodr' is not a part.*vision_encoder.*Did you mean decoder"),
        ({3: "cuda"}, "3 is not a part"),
        ({"preprocess": "cuda"}, "The preprocess was to run on CUDAExecutionProvider; it always runs on the CPU"),
        ({"decoder": "tensorrt"}, "TensorRT runs only the vision_encoder, not the decoder"),
        ({"connector": ["cuda", "tensorrt"]}, "TensorRT runs only the vision_encoder, not the connector"),
        (b"cpu", "providers is b'cpu'"),
        ({"cuda"}, "it must be 'auto', a name"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_opened(gpu, one_bundle, wanted, says):
    with pytest.raises(ProviderError, match=says):
        sdk.load(one_bundle, providers=wanted)
    assert not gpu.opened


def test_a_bundle_is_opened_on_what_was_chosen(gpu, one_bundle, own_home):
    with sdk.load(one_bundle, providers="tensorrt") as task:
        digest = task.manifest.base
        cache = own_home / "cache" / "tensorrt" / digest
        rest = [(CUDA, CUDA_OPTIONS), (CPU, {})]
        assert gpu.opened == [
            (VISION_ENCODER, [(TENSORRT, tensorrt_options(cache)), *rest], {"batch_size": 1}),
            (DECODER, rest, {}),
            ("preprocess.onnx", [(CPU, {})], {}),
        ]
        assert (cache / "onnxruntime-9.9.9").is_dir()
        assert task.providers == {"preprocess": CPU, "vision_encoder": TENSORRT, "decoder": CUDA}
        # The vision encoder's shape is fixed, so several pictures go through it one by one.
        together = task.ask_many([(PICTURE, "What?"), (PICTURE + 9, "What?")])
        assert [a.tokens for a in together] == [task.ask(p, "What?").tokens for p in (PICTURE, PICTURE + 9)]
    assert gpu.preloads == 1


def test_a_users_own_shapes_leave_the_batch_free(gpu, one_bundle, own_home):
    shapes = {
        f"trt_profile_{kind}_shapes": f"pixel_values:{n}x3x64x64"
        for kind, n in zip(("min", "opt", "max"), (1, 4, 8), strict=True)
    }
    with sdk.load(one_bundle, providers={"vision_encoder": ("tensorrt", shapes)}):
        assert gpu.opened[0][2] == {}
        assert shapes.items() <= gpu.opened[0][1][0][1].items()


def test_a_cache_that_cannot_be_made_is_an_error(gpu, one_bundle, own_home):
    own_home.mkdir()
    (own_home / "cache").write_text("in the way")
    with pytest.raises(ProviderError, match=r"TensorRT's cache .* cannot be made.*TVP_HOME"):
        sdk.load(one_bundle, providers="tensorrt")


@pytest.mark.parametrize("file", [VISION_ENCODER, DECODER])
@pytest.mark.parametrize("how", ["starts", "fails", "nodes"])
def test_what_was_named_and_does_not_run_is_an_error_and_auto_says_it_fell_back(gpu, one_bundle, caplog, file, how):
    """A provider that is dropped, one that raises, and one that takes no node, for each session."""
    if how == "starts":
        gpu.starts = lambda name, provider: provider == CPU or name != file
    elif how == "fails":
        gpu.fails = lambda name, provider: provider != CPU and name == file
    else:
        gpu.nodes = lambda name, providers: [(CPU if name == file else providers[0], "MatMul")]
    says = {
        "starts": f"CUDAExecutionProvider did not start for {file}",
        "fails": "has no memory left",
        "nodes": f"CUDAExecutionProvider runs no operator of {file}",
    }[how]
    part = "decoder" if file == DECODER else "vision_encoder"
    other = "vision_encoder" if file == DECODER else "decoder"
    for wanted in ("cuda", ["cuda", "cpu"], {part: "cuda"}):
        with pytest.raises(ProviderError, match=says):
            sdk.load(one_bundle, providers=wanted)
    assert not caplog.records
    for wanted in ("auto", {other: "cuda"}):
        with sdk.load(one_bundle, providers=wanted) as task, sdk.load(one_bundle, providers=wanted) as again:
            assert task.model is again.model
            assert task.providers == {"preprocess": CPU, part: CPU, other: CUDA}
            warnings = [record.getMessage() for record in caplog.records]
            assert len(warnings) == 2  # one a load
            assert again.check()["cases"] == 4
            assert all(says in w and f"Running the {part} on the CPU instead" in w for w in warnings)
            with pytest.raises(ProviderError, match=says):  # and is not given the base that fell back
                sdk.load(one_bundle, providers={part: "cuda"})
        caplog.clear()


def test_operators_that_are_left_on_the_cpu_are_named(gpu, one_bundle, caplog):
    gpu.nodes = lambda name, providers: (
        [(providers[0], "MatMul")] * 5 + [(CPU, "GroupQueryAttention")] * 2 + [(CPU, "Shape")] * 3
        if name == DECODER
        else [(providers[0], "MatMul"), (CPU, "Gather")]
    )
    with sdk.load(one_bundle, providers="cuda") as task:
        assert task.providers["decoder"] == CUDA
    assert [record.getMessage() for record in caplog.records] == [
        f"{DECODER} runs on {CUDA}, but the CPU runs these operators, which that provider lacks: 2 GroupQueryAttention."
    ]


def test_what_most_nodes_are_on_is_what_a_part_runs_on(gpu, one_bundle, own_home):
    gpu.nodes = lambda name, providers: [(providers[0], "Conv"), *[(p, "MatMul") for p in providers[1:2] * 7]]
    with sdk.load(one_bundle, providers="tensorrt") as task:
        assert task.providers["vision_encoder"] == CUDA


def test_a_provider_that_fails_in_a_run_is_an_error_and_not_a_fallback(one_bundle):
    """onnxruntime's own session goes on with the CPU, and prints it, unless it is told not to."""
    with sdk.load(one_bundle) as task:
        assert not any(
            session._enable_fallback for session in (task._own.preprocess, *task.model.parts.sessions.values())
        )


def test_bases_are_shared_by_what_they_run_on(gpu, one_bundle, own_home, tmp_path):
    copy = shutil.copytree(one_bundle, tmp_path / "copy")
    with sdk.load(one_bundle, providers="cuda") as a, sdk.load(copy, providers="auto") as b:
        assert a.model is b.model  # the same, said otherwise
        with sdk.load(copy, providers=("cuda", {"device_id": 1})) as other:
            assert other.model is not a.model
        with sdk.load(copy, providers="cpu") as cpu:
            assert cpu.model is not a.model
            assert cpu.providers["decoder"] == CPU


def test_the_real_onnxruntime_says_what_it_runs_on(one_bundle):
    """The call that tells of nodes exists, and tells of every node where it was asked to record them."""
    import onnxruntime as ort

    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell which nodes run where")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(one_bundle / "base" / DECODER, options, providers=[CPU])
    nodes = [(g.ep_name, n.op_type) for g in session.get_provider_graph_assignment_info() for n in g.get_nodes()]
    assert {name for name, _ in nodes} == {CPU}
    assert {"GroupQueryAttention", "MatMul"} <= {operator for _, operator in nodes}
    with sdk.load(one_bundle) as task:
        assert task.providers == dict.fromkeys(("preprocess", "vision_encoder", "decoder"), CPU)
        assert task.model.vision_encoder.get_inputs()[0].shape[0] == "batch_size"


@pytest.fixture(scope="module")
def bundles(one_bundle, tmp_path_factory):
    """The same model in fp32 and in fp16."""
    half = tmp_path_factory.mktemp("half") / "half"
    export(one_bundle.parent / "model", tasks.get("count"), half, precision="fp16", n_cases=2, max_loss=1)
    return {"fp32": one_bundle, "fp16": half}


@pytest.mark.parametrize(("precision", "place"), [("fp32", "cpu"), ("fp16", "cuda")])
def test_a_device_that_copies_what_is_bound_gives_the_same_answers(bundles, monkeypatch, precision, place):
    """onnxruntime copies an input to the device when it is bound, not when it runs."""
    pictures = [np.full((20, 20, 3), level, np.uint8) for level in (30, 200)]
    questions = ["How many objects are there?", "Is there a red star?"]

    def told(task):
        views = [task.see(picture) for picture in pictures]
        answers = [view.ask(question, max_new_tokens=12) for view in views for question in questions]
        answers += task.ask_many(list(zip(pictures, questions, strict=True)), max_new_tokens=80)  # the cache grows
        streams = ["".join(views[0].stream(question, max_new_tokens=12)) for question in questions]
        ranks = [view.rank(question, labels=["1", "2", "three stars"]) for view in views for question in questions]
        return [(answer.tokens, answer.log_probabilities) for answer in answers], streams, ranks

    with sdk.load(bundles[precision], providers="cpu") as task:
        expected = told(task)
    install(monkeypatch, CUDA, CPU)
    monkeypatch.setattr(OrtValue, "places", [])
    with sdk.load(bundles[precision], providers="cuda") as task:
        assert task.providers["decoder"] == CUDA
        assert told(task) == expected
    assert place in OrtValue.places


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_real_device_answers_as_pytorch_did(one_bundle, provider):
    import onnxruntime as ort

    name = {"cuda": CUDA, "tensorrt": TENSORRT}[provider]
    if name not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has no {name}")
    if not any(list(Path("/dev").glob(device)) for device in ("nvidia[0-9]*", "nvhost-gpu", "nvmap")):
        pytest.skip("this machine has no NVIDIA device")
    with sdk.load(one_bundle, providers=provider) as task:
        assert task.providers["vision_encoder"] == name
        assert task.check()["cases"] == 4
        if provider == "tensorrt":
            folder = sdk.home() / "cache" / "tensorrt" / task.manifest.base
            assert any(files for _, _, files in os.walk(folder))


def test_the_static_batch_is_the_exports_name_for_it(one_bundle):
    """The dimension that TensorRT's sessions fix is the one that the export leaves free."""
    import onnxruntime as ort

    session = ort.InferenceSession(one_bundle / "base" / VISION_ENCODER, providers=[CPU])
    assert session.get_inputs()[0].shape[0] == "batch_size"
    assert sessions.FILES["vision_encoder"] == VISION_ENCODER


@pytest.mark.parametrize(
    ("precision", "device", "takes"),
    [
        ("fp32", "", CUDA), ("fp16", "cpu", CUDA), ("int8", "", CPU), ("int4", "cpu", CPU), ("int4", "cuda", CUDA),
        ("int8", "tensorrt", CUDA),
    ],
)  # fmt: skip
def test_auto_takes_a_gpu_for_what_a_gpu_can_run(gpu, tmp_path, precision, device, takes):
    for part in PARTS[1:]:
        assert choose_providers("auto", part, tmp_path, precision, device)[0][0] == takes
        assert choose_providers("cuda", part, tmp_path, precision, device)[0][0] == CUDA  # what is named is taken
    half = precision == "fp16" or device in ("cuda", "tensorrt")
    options = dict(choose_providers("tensorrt", "vision_encoder", tmp_path, precision, device))[TENSORRT]
    assert options["trt_fp16_enable"] == str(half)


@pytest.mark.parametrize(("device", "warns"), [("", False), ("cpu", True), ("cuda", True), ("tensorrt", False)])
def test_a_vision_encoder_that_was_not_made_for_tensorrt_is_told_before_its_engines_are_built(
    gpu, tmp_path, caplog, device, warns
):
    make_plan("tensorrt", PARTS[1:], tmp_path, "fp32", device)
    assert ["not exported for TensorRT" in record.getMessage() for record in caplog.records] == [True] * warns
    caplog.clear()
    make_plan("cuda", PARTS[1:], tmp_path, "fp32", device)
    assert not caplog.records


def test_libraries_are_looked_for_once_and_not_for_a_cpu(gpu, tmp_path, capsys):
    def prints_what_is_not_there():
        gpu.preloads += 1
        print("Failed to load libcudnn.so.9")

    gpu.preload_dlls = prints_what_is_not_there
    choices("cpu", tmp_path)
    assert gpu.preloads == 0
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: choices("auto", tmp_path), range(8)))
    assert gpu.preloads == 1
    said = capsys.readouterr()
    assert (said.out, "libcudnn" in said.err) == ("", True)
