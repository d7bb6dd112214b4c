"""Image encoders of CLIP in a folder: the forward pass against torch's own layers, and embeddings by their hash."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sfumato as sf
from sfumato import features
from sfumato.errors import SfumatoError
from sfumato.nets.clip import ClipVision

CONFIG = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
    "num_hidden_layers": 2, "image_size": 12, "patch_size": 4,
}  # fmt: skip
LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")


def weights(seed: int = 0, out: int | None = 5) -> dict[str, torch.Tensor]:
    """Random weights under the names of the Hugging Face layout."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 3

    head = "vision_model."
    found = {
        f"{head}embeddings.class_embedding": draw(16),
        f"{head}embeddings.patch_embedding.weight": draw(16, 3, 4, 4),
        f"{head}embeddings.position_embedding.weight": draw(10, 16),
        f"{head}embeddings.position_ids": torch.arange(10)[None],
    }
    found |= {f"{head}{norm}.{part}": draw(16) for norm in ("pre_layrnorm", "post_layernorm") for part in PARTS}
    for i in range(2):
        own = f"{head}encoder.layers.{i}."
        found |= {f"{own}{name}.weight": draw(16, 16) for name in LAYER}
        found |= {f"{own}{name}.bias": draw(16) for name in LAYER}
        found |= {f"{own}layer_norm{j}.{part}": draw(16) for j in (1, 2) for part in PARTS}
        found |= {f"{own}mlp.fc1.weight": draw(24, 16), f"{own}mlp.fc1.bias": draw(24)}
        found |= {f"{own}mlp.fc2.weight": draw(16, 24), f"{own}mlp.fc2.bias": draw(16)}
    return found if out is None else {**found, "visual_projection.weight": draw(out, 16), "logit_scale": draw(1)}


PARTS = ("weight", "bias")


def encoder(folder, seed: int = 0, **more):
    folder.mkdir(parents=True)
    save_file(weights(seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
    return folder


def by_torch(x: torch.Tensor, found: dict[str, torch.Tensor], activation) -> torch.Tensor:
    """The same encoder, put together from torch's layers."""
    own = {name.removeprefix("vision_model."): value for name, value in found.items()}
    norm = lambda h, name: nn.functional.layer_norm(h, (16,), own[f"{name}.weight"], own[f"{name}.bias"])  # noqa: E731
    h = nn.functional.conv2d(x, own["embeddings.patch_embedding.weight"], stride=4).flatten(2).transpose(1, 2)
    h = torch.cat([own["embeddings.class_embedding"].expand(len(x), 1, 16), h], 1)
    h = norm(h + own["embeddings.position_embedding.weight"], "pre_layrnorm")
    for i in range(2):
        at = f"encoder.layers.{i}."
        layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, activation, batch_first=True, norm_first=True)
        state = {
            **{
                f"self_attn.in_proj_{part}": torch.cat([own[f"{at}{name}.{part}"] for name in LAYER[:3]])
                for part in PARTS
            },
            **{f"self_attn.out_proj.{part}": own[f"{at}{LAYER[3]}.{part}"] for part in PARTS},
            **{f"norm{j}.{part}": own[f"{at}layer_norm{j}.{part}"] for j in (1, 2) for part in PARTS},
            **{f"linear{j}.{part}": own[f"{at}mlp.fc{j}.{part}"] for j in (1, 2) for part in PARTS},
        }
        layer.load_state_dict(state)
        h = layer.train()(h)
    h = norm(h[:, 0], "post_layernorm")
    return h @ own["visual_projection.weight"].T if "visual_projection.weight" in own else h


@pytest.mark.parametrize(
    ("act", "activation"), [("quick_gelu", lambda y: y * torch.sigmoid(1.702 * y)), ("gelu", nn.functional.gelu)]
)
def test_the_forward_pass_is_that_of_pre_norm_transformers(act, activation):
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    for out in (5, None):
        net = ClipVision({**CONFIG, "hidden_act": act}, weights(out=out))
        assert torch.allclose(net(x), by_torch(x, weights(out=out), activation), atol=1e-5)


def test_pictures_of_any_size_and_one_channel_are_prepared(tmp_path):
    place = encoder(tmp_path / "clip")
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    made = features.build(str(place), (3, 12, 12), (0, 255))
    x = torch.randint(0, 256, (4, 3, 12, 12), generator=torch.Generator().manual_seed(0)).float()
    wanted = by_torch((x / 255 - 0.5) / 0.25, weights(), lambda y: y * torch.sigmoid(1.702 * y))
    assert torch.allclose(made(x), wanted / wanted.norm(dim=1, keepdim=True), atol=1e-5)
    grey = features.build(str(place), (1, 7, 9), (0, 1))
    assert grey(torch.rand(2, 1, 7, 9)).shape == (2, 5)
    for shape, bounds in (((3, 12, 12), None), ((2, 12, 12), (0, 1)), ((7,), (0, 1))):
        with pytest.raises(SfumatoError, match="takes grey or RGB pictures with known bounds"):
            features.build(str(place), shape, bounds)


def test_other_folders_are_refused(tmp_path):
    place = encoder(tmp_path / "wide", hidden_size=32)
    with pytest.raises(SfumatoError, match="holds no image encoder of CLIP"):
        features.build(str(place), (3, 12, 12), (0, 255))
    with pytest.raises(SfumatoError, match="the activation 'relu'"):
        features.build(str(encoder(tmp_path / "relu", hidden_act="relu")), (3, 12, 12), (0, 255))


def test_an_embedder_names_the_encoder_by_its_hash(tmp_path, monkeypatch):
    x = torch.randint(0, 256, (30, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    place = encoder(tmp_path / "clip-small")
    made = sf.Embedder.fit(x, str(place), 3)
    assert made.features == "clip-small" and made.bounds == (0, 255)
    file = sf.save(made, tmp_path / "e.safetensors")
    e = sf.load(file)(x)
    assert torch.equal(e, made(x)) and float(e.square().sum(1).mean()) == pytest.approx(3, abs=0.01)
    monkeypatch.setattr(features, "_USED", {})  # as in another process
    shutil.move(place, tmp_path / "elsewhere" / "clip-small")
    with pytest.raises(SfumatoError, match="no features 'clip-small' to embed by: .*SFUMATO_ENCODERS lists"):
        sf.load(file)(x)
    monkeypatch.setenv(features.PLACE, str(tmp_path / "elsewhere" / "clip-small"))
    assert torch.equal(sf.load(file)(x), e)
    other = encoder(tmp_path / "other" / "clip-small", seed=1)
    monkeypatch.setenv(features.PLACE, str(other))
    with pytest.raises(SfumatoError, match="clip-small here are not those of the file"):
        sf.load(file)(x)
