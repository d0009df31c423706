"""How many image tokens a checkpoint makes: of one tile, of a grid of tiles, and a cap on them."""

from __future__ import annotations

from typing import Any

from gmskip_ros.numbers import is_whole_number
from gmskip_ros.vlm.errors import ModelLoadError

LAST_GRID_RATIO = 1.1  # OneVision shrinks features of more than its square times the most tiles


def tile_tokens(config: Any) -> int:
    """Return how many image tokens one tile makes; all of them for LLaVA-1.5."""
    return tower_tokens(config) - (config.vision_feature_select_strategy == 'default')


def grid_tokens(config: Any, height: int, width: int) -> int:
    """Return the most image tokens of an image cut into a grid of height x width pixels."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size  # patches of a tile
    most_area = float('inf')
    if config.model_type == 'llava_onevision':
        most_tiles = int(config.vision_aspect_ratio.removeprefix('anyres_max_'))
        most_area = LAST_GRID_RATIO**2 * most_tiles * side**2
    rows, columns = height // vision.image_size, width // vision.image_size
    # The whole image once, then its tiles, with an extra token after each row of patches.
    return tile_tokens(config) + int(min(rows * side * columns * side, most_area)) + rows * side


def tower_tokens(config: Any) -> int:
    """Return how many tokens a tile has inside the vision tower."""
    vision = config.vision_config
    has_class_token = vision.model_type == 'clip_vision_model'
    return (vision.image_size // vision.patch_size) ** 2 + has_class_token


def check_max_image_tokens(max_image_tokens: int) -> None:
    """Raise ModelLoadError unless the cap is a whole number of at least 0."""
    if not is_whole_number(max_image_tokens) or max_image_tokens < 0:
        raise ModelLoadError(
            f'max_image_tokens {max_image_tokens!r} is not a whole number of 0 or more'
        )


def cap_image_tokens(model: str, config: Any, image_processor: Any, max_image_tokens: int) -> None:
    """Keep only the grids of tiles that make at most `max_image_tokens`; 0: keep all.

    Changes configuration and image processor, which have to agree. Raises ModelLoadError if every
    grid makes more.
    """
    check_max_image_tokens(max_image_tokens)
    if not max_image_tokens:
        return
    if config.model_type == 'llava':
        grids, least = [], tile_tokens(config)
    else:
        tokens_of = {
            tuple(grid): grid_tokens(config, *grid) for grid in config.image_grid_pinpoints
        }
        grids = [list(grid) for grid, count in tokens_of.items() if count <= max_image_tokens]
        least = min(tokens_of.values())
    if least > max_image_tokens:
        raise ModelLoadError(
            f'max_image_tokens {max_image_tokens}: the fewest that {model} can make of an image '
            f'are {least}: allow that many, or use 0 for no limit'
        )
    if grids:
        config.image_grid_pinpoints = image_processor.image_grid_pinpoints = grids
