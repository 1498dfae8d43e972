import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from diffusion.training import recall


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of kept programs, empty as JAX's own cache is; whatever is compiled is worth keeping."""
    monkeypatch.setattr(recall, "WORTH", 0)
    before = {name: jax.config.values[name] for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    reset_cache()
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()
