"""What single processes of a distributed test run: here, where a spawned process can import it."""
import copy
import json
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ce_mm.layers import CENorm
from ce_mm.ops.reference import Gate, equilibrium

CHANNELS = 8


def layer():
    torch.manual_seed(0)
    ce = CENorm(CHANNELS, group_size=4, reduction=2).double()
    for p in ce.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return ce


def with_sync_bn(ce, implementation):
    if implementation == "torch":
        return nn.SyncBatchNorm.convert_sync_batchnorm(ce)
    from mmengine.model import convert_sync_batchnorm

    return convert_sync_batchnorm(ce, implementation)


def sync_bn_equals_the_joined_batch(rank, samples, implementation, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(samples))
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(sum(samples), CHANNELS, 4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    ce = with_sync_bn(layer(), implementation)
    mine = slice(sum(samples[:rank]), sum(samples[: rank + 1]))
    x_mine = x[mine].clone().requires_grad_()
    y = ce(x_mine)
    y.backward(dy[mine])

    twin = layer()
    norm = nn.BatchNorm2d(CHANNELS).double()
    norm.weight, norm.bias = copy.deepcopy(twin.norm.weight), copy.deepcopy(twin.norm.bias)
    x.requires_grad_()
    parts = [p for p in norm(x).split(samples) if len(p)]
    ir = twin.ir
    gate = Gate(ir.fc1.weight, ir.ln.weight, ir.ln.bias, ir.fc2.weight)
    expected = torch.cat([equilibrium(part, gate, twin.mix, group_size=4)[0] for part in parts])
    expected.backward(dy)
    torch.testing.assert_close(y, expected[mine])
    torch.testing.assert_close(x_mine.grad, x.grad[mine])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ce.norm, name), getattr(norm, name))
    for ours, theirs in ((ce.norm.weight, norm.weight), (ce.mix, twin.mix), (ce.ir.fc1.weight, twin.ir.fc1.weight)):
        total = ours.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, theirs.grad)
    dist.destroy_process_group()


NORMS = dict(BN={}, SyncBN={}, GN=dict(num_groups=2), LN={}, IN=dict(affine=True), SN={})
BRANCHES = dict(both=("bd", "ir"), bd=("bd",), ir=("ir",))


def sync_cases():
    """Arguments of CENorm(sync=True) by name."""
    cases = {
        f"{norm}-{branches}": dict(norm=dict(type=norm, **more), branches=BRANCHES[branches])
        for norm, more in NORMS.items()
        for branches in BRANCHES
    }
    for norm in ("BN", "GN", "SN"):
        cases[f"{norm}-max_pool"] = dict(norm=dict(type=norm, **NORMS[norm]), max_pool=True)
    cases["BN-correction"] = dict(norm=dict(type="BN"), correction=1)
    return cases


def every_split(world):
    """(N, H, W) of every process's part, by name."""
    even, uneven, lonely = (2, 4, 3), (3, 4, 3), (0, 4, 3)
    return {
        "even": [even] * world,
        "uneven": [uneven, *[(1, 4, 3)] * (world - 1)],
        "one empty": [even, *[even] * (world - 2), lonely],
        "one with samples": [lonely, *[lonely] * (world - 2), uneven],
        "different maps": [(2, 6, 5), *[(3, 3, 4)] * (world - 1)],
        "a map too small to pool": [(2, 6, 5), *[(3, 1, 4)] * (world - 1)],
    }


def sync_layer(arguments):
    torch.manual_seed(0)
    ce = CENorm(CHANNELS, group_size=4, reduction=2, **arguments).double()
    for p in ce.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    ce.weight.data[::2] *= -1
    return ce


def literal_pool(x):
    return F.max_pool2d(x, 2) if min(x.shape[2:]) >= 2 and len(x) else x


def literal_base(norm, maps):
    """x̃ of every part, with the statistics of the batch that the parts are together, by PyTorch's own formulas."""
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in maps], 1)
    mean, variance = values.mean(1)[:, None, None], values.var(1, correction=0)[:, None, None]
    gamma, beta = norm.weight[:, None, None], norm.bias[:, None, None]
    if isinstance(norm, nn.GroupNorm):
        return [F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps) for x in maps]
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.track_running_stats:
        return [F.group_norm(x, CHANNELS, norm.weight, norm.bias, norm.eps) for x in maps]
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return [gamma * (x - mean) / (variance + norm.eps).sqrt() + beta for x in maps]
    result = []
    for x in maps:
        means = [x.mean((2, 3), keepdim=True), x.mean((1, 2, 3), keepdim=True), mean]
        variances = [x.var(d, correction=0, keepdim=True) for d in ((2, 3), (1, 2, 3))] + [variance]
        of_mean, of_variance = norm.mean_weight.softmax(0), norm.var_weight.softmax(0)
        centre = sum(w * m for w, m in zip(of_mean, means, strict=True))
        spread = sum(w * v for w, v in zip(of_variance, variances, strict=True))
        result.append(gamma * (x - centre) / (spread + norm.eps).sqrt() + beta)
    return result


def literal_layer(ce, maps):
    """CE of the batch that the parts are together, and its Σ^(-1/2) and s^(-1/2), literally."""
    maps = [x for x in maps if len(x)]
    base = literal_base(ce.norm, maps)
    whitening = inv_std_scale = None
    result = [0 for _ in base]
    ratio = torch.sigmoid(ce.mix) if ce.mix is not None else 1
    if ce.bd is not None:
        seen = [literal_pool(x) if ce.bd.max_pool else x for x in base]
        eps = ce.bd.eps * sum(x.numel() for x in base) / sum(x.numel() for x in seen)
        rows = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], 1).view(2, 4, -1)
        rows = rows - rows.mean(2, keepdim=True)
        sigma = rows @ rows.mT / rows.shape[2] + eps * torch.eye(4, dtype=rows.dtype)
        sigma = sigma / sigma.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        whitening = torch.eye(4, dtype=rows.dtype).expand(2, 4, 4)
        for _ in range(ce.bd.iterations):
            whitening = (3 * whitening - whitening @ whitening @ whitening @ sigma) / 2
        result = [
            r + ratio * torch.einsum("cij,ncjhw->ncihw", whitening, x.unflatten(1, (2, 4))).flatten(1, 2)
            for r, x in zip(result, base, strict=True)
        ]
    if ce.ir is not None:
        variances = []
        for x in base:
            centred = x - x.mean((2, 3), keepdim=True)
            positions = x.shape[2] * x.shape[3]
            variances.append(centred.square().sum((2, 3)) / max(positions - ce.ir.correction, 1))
        inv_std_scale = torch.cat(variances).mean().clamp(min=1e-5).rsqrt()
        ratio = 0 if ce.mix is None else ratio
        for i, (x, variance) in enumerate(zip(base, variances, strict=True)):
            gate = torch.sigmoid(ce.ir.fc2(F.relu(ce.ir.ln(ce.ir.fc1(variance)))))
            result[i] = result[i] + (1 - ratio) * (gate * inv_std_scale)[:, :, None, None] * x
    return result, whitening, inv_std_scale


def sync_ce_equals_the_joined_batch(rank, shapes, arguments):
    """Outputs, gradients of inputs and parameters, and all buffers."""
    generator = torch.Generator().manual_seed(1)
    maps, gradients = (
        [
            (2 * i + 1) * torch.randn(n, CHANNELS, h, w, dtype=torch.float64, generator=generator) + 3 * i
            for i, (n, h, w) in enumerate(shapes)
        ]
        for _ in range(2)
    )
    ce, twin = sync_layer(arguments | dict(sync=True)), sync_layer(arguments)
    mine = maps[rank].clone().requires_grad_()
    y = ce(mine)
    y.backward(gradients[rank])

    for x in maps:
        x.requires_grad_()
    expected, whitening, inv_std_scale = literal_layer(twin, maps)
    present = [i for i, x in enumerate(maps) if len(x)]
    torch.autograd.backward(expected, [gradients[i] for i in present])
    close = dict(rtol=1e-6, atol=1e-8)
    if rank in present:
        torch.testing.assert_close(y, expected[present.index(rank)], **close)
        torch.testing.assert_close(mine.grad, maps[rank].grad, **close)
    for ours, theirs in zip(ce.parameters(), twin.parameters(), strict=True):
        total = ours.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, theirs.grad, **close)

    if ce.bd is not None:
        torch.testing.assert_close(ce.bd.running_whitening, 0.9 * twin.bd.running_whitening + 0.1 * whitening, **close)
    if ce.ir is not None:
        torch.testing.assert_close(
            ce.ir.running_inv_std_scale, 0.9 * twin.ir.running_inv_std_scale + 0.1 * inv_std_scale, **close
        )
    if getattr(ce.norm, "running_mean", None) is not None:
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in maps], 1)
        torch.testing.assert_close(ce.norm.running_mean, 0.1 * values.mean(1), **close)
        torch.testing.assert_close(ce.norm.running_var, 0.9 + 0.1 * values.var(1), **close)
        assert ce.norm.num_batches_tracked == 1


def far_values_keep_float32_s_precision(rank, world):
    """A mean a thousand times the spread, and another in each process, in float32."""
    generator = torch.Generator().manual_seed(1)
    maps = [
        (torch.randn(2, CHANNELS, 4, 3, generator=generator) + 1000 + 3 * i).double().requires_grad_()
        for i in range(world)
    ]
    gradients = [torch.randn(2, CHANNELS, 4, 3, generator=generator) for _ in range(world)]
    ce = sync_layer(dict(norm=dict(type="BN"), sync=True)).float()
    mine = maps[rank].detach().float().requires_grad_()
    y = ce(mine)
    y.backward(gradients[rank])
    twin = sync_layer(dict(norm=dict(type="BN")))
    expected, _, _ = literal_layer(twin, maps)
    torch.autograd.backward(expected, [g.double() for g in gradients])
    for ours, theirs in ((y, expected[rank]), (mine.grad, maps[rank].grad)):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def without_any_sample_no_buffer_moves(rank, world):
    ce = sync_layer(dict(norm=dict(type="BN"), sync=True))
    kept = {name: value.clone() for name, value in ce.named_buffers()}
    x = torch.empty(0, CHANNELS, 4, 3, dtype=torch.float64, requires_grad=True)
    ce(x).sum().backward()
    for name, value in ce.named_buffers():
        assert torch.equal(value, kept[name]), name
    for name, p in ce.named_parameters():
        assert p.grad.isfinite().all(), name
    assert ce.finite


def one_bad_batch_moves_no_process_s_buffers(rank, world):
    ce = sync_layer(dict(norm=dict(type="BN"), sync=True))
    kept = {name: value.clone() for name, value in ce.named_buffers()}
    x = torch.randn(2, CHANNELS, 4, 3, dtype=torch.float64)
    if rank == 0:
        x[0, 0, 0, 0] = torch.nan
    ce(x)
    for name, value in ce.named_buffers():
        assert torch.equal(value, kept[name]), name
    assert not ce.finite


def a_frozen_layer_asks_no_other_process(rank, world):
    ce = sync_layer(dict(norm=dict(type="BN"), sync=True))
    ce.norm.eval()
    if rank == 0:
        ce(torch.randn(2, CHANNELS, 4, 3, dtype=torch.float64))  # the others never come


def every_layer_sends_one_message_each_way(rank, world):
    sizes = []
    original = dist.all_reduce

    def recording(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    ce = sync_layer(dict(norm=dict(type="BN"), sync=True))
    x = torch.randn(2, CHANNELS, 4, 3, dtype=torch.float64, requires_grad=True)
    dist.all_reduce = recording
    try:
        ce(x).sum().backward()
    finally:
        dist.all_reduce = original
    assert sizes == [CHANNELS * (4 + 2) + 2] * 2


FACTS = [
    far_values_keep_float32_s_precision,
    without_any_sample_no_buffer_moves,
    one_bad_batch_moves_no_process_s_buffers,
    a_frozen_layer_asks_no_other_process,
    every_layer_sends_one_message_each_way,
]


def sync_checks(world):
    """Name to check and its arguments after the rank; of four processes, the layers with both branches alone."""
    cases = {name: a for name, a in sync_cases().items() if world == 2 or a.get("branches", BRANCHES["both"])[1:]}
    splits = every_split(world)
    equal = {
        f"{case} of the joined batch, {split}": (sync_ce_equals_the_joined_batch, splits[split], cases[case])
        for split in splits
        for case in cases
    }
    return equal | {fact.__name__: (fact, world) for fact in FACTS}


def run_sync_checks(rank, world, folder):
    """Run all of them in one start of the processes, up to the first failure: name to traceback, or None."""
    # A check that fails in one process leaves the others waiting in theirs.
    timeout = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world, timeout=timeout
    )
    torch.set_num_threads(1)
    failures = {}
    for name, (check, *arguments) in sync_checks(world).items():
        try:
            check(rank, *arguments)
            dist.barrier()
            failures[name] = None
        except Exception:
            failures[name] = traceback.format_exc()
            break
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
