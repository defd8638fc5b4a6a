"""Central lines of the package, each with a defect that a tired author would write, and the test that catches it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One line written wrong.

    name  what the line decides
    file  below ``src/ifsq``
    line  a part of it, which stands in the file exactly once
    wrong what stands there instead
    test  the one that must fail, below ``tests``; as pytest names it
    """

    name: str
    file: str
    line: str
    wrong: str
    test: str


MUTATIONS = (
    Mutation(
        "bound: slope of the sigmoid",
        "quantizers/bounds.py",
        "IFSQ_ALPHA = 1.6",
        "IFSQ_ALPHA = 1.702",
        "quantizers/test_fsq.py::test_official_cases",
    ),
    Mutation(
        "rounding: to the nearest level",
        "quantizers/fused.py",
        "        t.round_()\n",
        "        t.floor_()\n",
        "quantizers/test_fused.py::test_against_plain_autograd",
    ),
    Mutation(
        "cells of equal width: as many as levels",
        "quantizers/fused.py",
        "t = u.mul_(L) if in_place else u * L\n",
        "t = u.mul_(L - 1) if in_place else u * (L - 1)\n",
        "quantizers/test_fsq.py::test_equal_cells_are_equal",
    ),
    Mutation(
        "index: integers wide enough for the group",
        "quantizers/digits.py",
        "torch.int32 if size <= 2**31 else torch.int64",
        "torch.int32 if size <= 2**33 else torch.int64",
        "quantizers/test_fsq.py::test_large_codebooks_are_exact",
    ),
    Mutation(
        "digit order: the first digit counts ones",
        "quantizers/digits.py",
        '        if order == "little":\n            places.reverse()\n',
        '        if order == "big":\n            places.reverse()\n',
        "quantizers/test_fsq.py::test_digit_order_is_what_it_says",
    ),
    Mutation(
        "cache: new keys stand behind the old ones",
        "nn/cache.py",
        "self._keys[:, :, start:end] = k\n",
        "self._keys[:, :, :new] = k\n",
        "nn/test_kv_cache.py::test_cached_steps_equal_the_causal_pass",
    ),
    Mutation(
        "mask: a position sees itself and those before",
        "nn/cache.py",
        "torch.arange(seen, device=device) <= last[:, None]",
        "torch.arange(seen, device=device) < last[:, None] + 2",
        "nn/test_kv_cache.py::test_cached_steps_equal_the_causal_pass",
    ),
    Mutation(
        "average of the weights: its decay",
        "training/ema.py",
        "1 - decay)\n",
        "decay)\n",
        "training/test_loop.py::test_ema_is_the_weighted_sum_of_the_past",
    ),
    Mutation(
        "guidance, autoregressive: from the null class",
        "generators/ar/guidance.py",
        "null + scales[0] * (conditional - null)",
        "conditional + scales[0] * (conditional - null)",
        "generators/test_ar_sample.py::test_guidance_extrapolates_from_the_null_half",
    ),
    Mutation(
        "guidance, diffusion: which half is the null class",
        "generators/diffusion/generator.py",
        "both = torch.cat([labels, torch.full_like(labels, self.num_classes)])",
        "both = torch.cat([torch.full_like(labels, self.num_classes), labels])",
        "generators/test_diffusion.py::test_official_guidance",
    ),
    Mutation(
        "resume: position in the order of the images",
        "data/sampler.py",
        "start = step * self.batch + self.rank * share",
        "start = (step % 4) * self.batch + self.rank * share",
        "data/test_step_sampler.py::test_steps_run_through_whole_epochs",
    ),
    Mutation(
        "flip: of columns, not of rows",
        "data/encoded.py",
        "cropped = cropped[:, ::-1]",
        "cropped = cropped[::-1]",
        "data/containers/test_image_folder.py::test_an_image_of_the_asked_size_is_untouched_but_for_the_flip",
    ),
    Mutation(
        "crop: the middle",
        "data/transforms.py",
        "top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2\n",
        "top, left = (array.shape[0] - height + 1) // 2, (array.shape[1] - width + 1) // 2\n",
        "data/test_transforms.py::test_a_rectangle_is_the_middle_of_the_picture_that_covers_it",
    ),
    Mutation(
        "Fréchet distance: the trace of the root",
        "metrics/distribution.py",
        "second.trace() - 2 * cross",
        "second.trace() - cross",
        "metrics/test_frechet.py::test_two_gaussians_have_a_closed_form",
    ),
    Mutation(
        "sFID: the first channels of the map",
        "pretrained/inception.py",
        "x[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)",
        "x[:, -SPATIAL:].permute(0, 2, 3, 1).flatten(1)",
        "pretrained/test_inception.py::test_spatial_features_equal_a_second_implementation",
    ),
    Mutation(
        "Inception Score: which part an image belongs to",
        "metrics/inception_score.py",
        "(first + torch.arange(len(rows))) // self.part",
        "(first + torch.arange(len(rows))) % self.part",
        "metrics/test_inception_score.py::test_golden",
    ),
    Mutation(
        "precision: no image is its own neighbour",
        "metrics/neighbours.py",
        "            squares.fill_diagonal_(torch.inf)  # none is its own neighbour\n",
        "            pass\n",
        "metrics/test_neighbours.py::test_all_equal_a_loop_over_images",
    ),
    Mutation(
        "label drop: as often as the rate says",
        "generators/conditioning.py",
        "device=rng.device) < rate\n",
        "device=rng.device) > rate\n",
        "generators/test_conditioning.py::test_label_dropout_takes_its_share_and_follows_the_generator",
    ),
    Mutation(
        "path: derivative of the noise's share",
        "generators/diffusion/path.py",
        "return -math.pi / 2 * self.alpha(t)",
        "return -math.pi / 2 * self.sigma(t)",
        "generators/test_path.py::test_velocity_is_the_derivative",
    ),
    Mutation(
        "solver: the second slope of Heun's step",
        "generators/diffusion/solvers.py",
        "(slope + velocity(x + (after - t) * slope, after))",
        "(slope + velocity(x + (after - t) * slope, t))",
        "generators/test_solvers.py::test_solvers_converge_at_their_order",
    ),
    Mutation(
        "seed of image i: a stream of its own",
        "generators/streams.py",
        "np.array([seed, first + row], np.uint64)",
        "np.array([seed, row], np.uint64)",
        "generators/test_streams.py::test_an_image_is_the_same_in_whatever_batch",
    ),
)
