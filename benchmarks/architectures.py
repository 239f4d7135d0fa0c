"""Architectures of timm as PyTorch exports them, with random weights: graphs that nobody chose with us in mind.

    python -m benchmarks.architectures FOLDER [--names resnet18,...]
    python -m benchmarks.units FOLDER

Needs timm (pip install timm); PyTorch's first exporter, an open batch, pictures as small as the network takes. No two
tensors are alike, for the exporter would share one between layers that have nothing to do with one another.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import torch

from benchmarks.rows import split_at_commas

NAMES = """botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convmixer_768_32 convnext_atto
    convnextv2_atto cspresnet50 davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla34 dpn48b eca_botnext26ts_256
    edgenext_xx_small efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
    fastvit_t8 focalnet_tiny_srf gcresnext26ts gernet_s ghostnet_050 ghostnetv2_100 gmlp_ti16_224 hardcorenas_a
    hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto inception_v3 lambda_resnet26rpt_256 lcnet_050
    levit_128s mambaout_femto maxvit_rmlp_pico_rw_256 mixer_s32_224 mobilenetv3_small_050 mobilenetv4_conv_small
    mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nf_regnet_b0 pit_ti_224 poolformer_s12 pvt_v2_b0
    regnetx_002 regnety_002 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnet18 resnext26ts
    rexnet_100 selecsls42 sequencer2d_s seresnet18 skresnet18 starnet_s1 swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 tinynet_e tiny_vit_5m_224 tnt_s_patch16_224 twins_pcpvt_small visformer_tiny
    vit_tiny_patch16_224 vovnet39a xcit_nano_12_p16_224"""
SMALL, SIZES = 64, (96, 128, 160, 224, 256, 299)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--names", callback=split_at_commas, default=",".join(NAMES.split()), help="Of timm's models.")
def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    for name in names:
        try:
            size = export(name, folder / f"{name}.onnx")
            click.echo(f"{name}: {size} x {size}")
        except Exception as error:  # of timm and of the exporter, of all kinds
            click.echo(f"{name}: {' '.join(str(error).split())[:160] or repr(error)}", err=True)


def export(name: str, path: Path) -> int:
    """The network to a file; the size of its pictures."""
    torch.manual_seed(0)
    model, size = created(name)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x, axes = torch.randn(1, 3, size, size), {"x": {0: "N"}, "y": {0: "N"}}
    torch.onnx.export(model, x, path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    return size


def created(name: str) -> tuple[torch.nn.Module, int]:
    """For pictures of ``SMALL`` if it can be made for these, else of the first of ``SIZES`` that it runs on."""
    import timm

    try:
        return timm.create_model(name, num_classes=10, exportable=True, img_size=SMALL).eval(), SMALL
    except (TypeError, AssertionError, ValueError, RuntimeError):
        model = timm.create_model(name, num_classes=10, exportable=True).eval()
    for size in SIZES:
        try:
            with torch.no_grad():
                model(torch.randn(1, 3, size, size))
            return model, size
        except (AssertionError, ValueError, RuntimeError):
            continue
    raise click.ClickException(f"{name} runs on no picture of {SIZES}")


if __name__ == "__main__":
    main()
