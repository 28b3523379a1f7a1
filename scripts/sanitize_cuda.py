"""A small round through every CUDA kernel, for compute-sanitizer."""

import diff_gaussian_rasterization as dgr
import torch

from unified_lift.kernels.assignment import hungarian
from unified_lift.kernels.association import associate, codebook_terms
from unified_lift.kernels.contrastive import contrastive_loss, uncertainty
from unified_lift.kernels.photometric import photometric_loss

g = torch.Generator().manual_seed(0)
num, width, height = 400, 53, 37
means = torch.randn(num, 3, generator=g) + torch.tensor([0, 0, 2.5])
scales = torch.exp(0.6 * torch.randn(num, 3, generator=g) - 2.6)
scales[:3] = 50.0
K = torch.tensor([[[60.0, 0, 25], [0, 55.0, 20], [0, 0, 1]]])
geometry = [means, torch.randn(num, 4, generator=g), scales, torch.rand(num, generator=g)]
geometry = [t.cuda().requires_grad_() for t in geometry]
view = torch.eye(4, device="cuda")
for dim in (0, 3, 16, 19, 50):
    for move in (False, True):
        features = torch.randn(num, dim, generator=g).cuda().requires_grad_() if dim else None
        sh = torch.randn(num, 16, 3, generator=g).cuda().requires_grad_()
        means2d, absolute2d = (torch.zeros(1, num, 2, device="cuda", requires_grad=True) for _ in range(2))
        out = dgr.rasterize(
            *geometry, sh, features, view[None], K.cuda(), width, height, sh_degree=3, means2d=means2d,
            features_move_geometry=move, antialiased=move, absolute2d=absolute2d if dim % 16 else None,
        )  # fmt: skip
        (out.image.sum() + out.features.square().sum() + out.alpha.sum() + out.depth.sum()).backward()
pixels = torch.stack([torch.randint(width, (300,)), torch.randint(height, (300,))], -1).cuda()
weights = dgr.pixel_weights(*geometry, view, K[0].cuda(), width, height, pixels)
values = torch.randn(num, 19, device="cuda", requires_grad=True)
dgr.blend(weights, values, rows=torch.arange(0, 300, 3, device="cuda")).sum().backward()
image = torch.rand(height, width, 3, device="cuda", requires_grad=True)
photometric_loss(image, torch.rand(height, width, 3, device="cuda"), lambda_dssim=0.2).backward()
moments = [torch.zeros(1001, device="cuda") for _ in range(2)]
update = (torch.ones(1001, device="cuda"), torch.ones(1001, device="cuda"), dgr.AdamState(*moments, 0.1, 1))
dgr.adam_steps([update], beta1=0.9, beta2=0.999, eps=1e-8)
for dim in (3, 16, 33, 64):
    for segments, codes in ((5, 3), (70, 150)):
        slot = torch.randint(-1, segments, (1000,), generator=g).int().cuda()
        rendered = torch.randn(1000, dim, generator=g).cuda().requires_grad_()
        codebook = torch.randn(codes, dim, generator=g).cuda().requires_grad_()
        for temperature in (None, 0.2):
            options = {"detach_norm": False, "unit_centres": True, "mean_over_pixels": True, "min_pixels": 2}
            contrastive_loss(rendered, slot, segments, temperature=temperature, **options).backward()
            uncertainty(rendered, slot, segments, temperature=0.1)
            options = {"temperature": temperature, "area_aware": temperature is None}
            fit = associate(rendered, codebook, slot, segments, **options)
            hungarian(fit.scores, no_match_cost=fit.scores.mean(dim=1))
            chosen = hungarian(fit.scores)
            options = {"temperature": temperature, "unit_codes": True}
            sum(codebook_terms(rendered, codebook, fit, chosen, slot, **options)).backward()
hungarian(torch.rand(20, 3000, generator=g).cuda())
torch.cuda.synchronize()
print("every kernel ran")
