"""The parameters of a packed model laid out for the compiled kernels, and a forward pass over them."""

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

from lowbit.formats import PackedModel, PackedTensor, StoredTensor, decode
from lowbit.formats.tensors import located
from lowbit.kernels import library as native
from lowbit.kernels.cache import KVCache
from lowbit.kernels.matrix import CompiledMatrix, check_status
from lowbit.kernels.scratch import Scratch
from lowbit.kernels.weights import check_tensors, embedding_rows
from lowbit.llama import LlamaConfig

_MATRICES = {
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "o": "attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class CompiledWeights:
    """Every matrix packed anew for the kernels of one instruction set; float ones stay in their dtype.

    The embedding is kept as it is stored, for look-ups, and, where it is the head as well, a second time as a matrix:
    low-bit codes for the kernels, or the stored float rows, which are shared.

    Args:
      packed: the model.
      config: what it must hold.
      isa: one of `library.supported()`.
      activations: of products with packed matrices.
      threads: that share each product.

    Raises:
      FormatError: a tensor that is missing, superfluous, of another shape than the config's, or damaged.
      QuantizerError: sums of 8-bit activations that may pass int32.
    """

    def __init__(self, packed: PackedModel, config: LlamaConfig, isa: str, activations: str, threads: int):
        check_tensors(packed, config)
        self.isa, self.activations, self.threads = isa, activations, threads
        self._config = config
        self._library = native.library()
        self._embedding = packed.tensors["embed.embedding"]
        self._vectors = {
            name: np.ascontiguousarray(decode(tensor))
            for name, tensor in packed.tensors.items()
            if not isinstance(tensor, PackedTensor) and len(tensor.shape) == 1
        }
        self.matrices: dict[str, CompiledMatrix] = {}
        head = "embed.embedding" if config.tie_embeddings else "lm_head.kernel"
        for name, tensor in packed.tensors.items():
            if name in self._vectors or (name == "embed.embedding" and name != head):
                continue
            transposed = name == "embed.embedding"
            with located(f"tensor {name!r}"):
                if isinstance(tensor, PackedTensor) and tensor.transposed != transposed:
                    tensor = tensor.decode()  # rows along the wrong axis: scales do not factor out of its products
                self.matrices[name] = CompiledMatrix(tensor, isa, threads, transposed=transposed)
                _release(packed.tensors[name])
        self._layers = (native.Layer * config.num_layers)(*map(self._layer, range(config.num_layers)))
        self._model = native.Model(
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.rms_norm_eps,
            native.INT8 if activations == "int8" else native.FLOAT,
            self._layers,
            self._vectors["norm.scale"].ctypes.data,
        )
        self._scratch = Scratch()

    @property
    def in_one_call(self) -> bool:
        """Whether `forward` computes this model; factors, of inputs or of adapters, and norms are left to numpy."""
        return not self._config.linear_norm and all(matrix.struct_is_all for matrix in self.matrices.values())

    def vector(self, name: str) -> NDArray[np.float32]:
        """Returns a norm's scale or a bias."""
        return self._vectors[name]

    @property
    def nbytes(self) -> int:
        """Bytes held, memory-mapped ones included."""
        held = sum(m.nbytes for m in self.matrices.values()) + sum(v.nbytes for v in self._vectors.values())
        shared = "embed.embedding" in self.matrices and not isinstance(self._embedding, PackedTensor)
        return held if shared else held + self._embedding.nbytes

    def rows(self, name: str, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """Returns rows of the embedding [V d], f32[*index d]."""
        assert name == "embed.embedding"
        return embedding_rows(self._embedding, index)

    def matmul(self, x: NDArray[np.float32], name: str, *, transposed: bool = False) -> NDArray[np.float32]:
        """Returns x[... k] @ parameter[k n], or @ parameter[n k].T where `transposed` (a tied head).

        Raises:
          DataError: 8-bit activations that are not finite.
        """
        assert transposed == (name == "embed.embedding")
        product = self.matrices[name].matmul(x.reshape(-1, x.shape[-1]), self.activations)
        return product.reshape(*x.shape[:-1], -1)

    def forward(
        self, x: NDArray[np.float32], angles: tuple[NDArray[np.float32], NDArray[np.float32]], cache: KVCache
    ) -> NDArray[np.float32]:
        """Returns the normalised last hidden states f32[b t d] of embeddings x, and stores keys and values.

        Args:
          x: f32[b t d], overwritten.
          angles: cos and sin of the positions, each [t head_dim/2].
          cache: with room for t more tokens; its length does not change here.

        Raises:
          DataError: activations that are not finite.
          KernelError: the system gives no threads.
        """
        b, t, _ = x.shape
        keys, values = cache.arrays()
        theirs = native.Cache(keys.ctypes.data, values.ctypes.data, b, cache.capacity, cache.length)
        model = ctypes.byref(self._model)
        needed = self._library.lb_forward_workspace(model, b, t, cache.length + t, self.threads)
        scratch = self._scratch.of(needed, more=needed if t == 1 else 0)  # token by token, more is needed each time
        x, cos, sin = (np.ascontiguousarray(array) for array in (x, *angles))
        check_status(
            self._library.lb_forward(
                self.isa.encode(),
                model,
                ctypes.byref(theirs),
                *(x.ctypes.data, t, cos.ctypes.data, sin.ctypes.data),
                scratch.ctypes.data,
                self.threads,
            )
        )
        return x

    def _layer(self, number: int) -> native.Layer:
        at = f"layers.{number}"
        layer = native.Layer()
        for field, name in _MATRICES.items():
            setattr(layer, field, self.matrices[f"{at}.{name}.kernel"].struct)
        layer.attn_norm = self._vectors[f"{at}.attn_norm.scale"].ctypes.data
        layer.mlp_norm = self._vectors[f"{at}.mlp_norm.scale"].ctypes.data
        if self._config.qkv_bias:
            for field in ("q", "k", "v"):
                setattr(layer, f"{field}_bias", self._vectors[f"{at}.attn.{field}_proj.bias"].ctypes.data)
        return layer


def _release(tensor: StoredTensor) -> None:
    """Lets go of the memory-mapped pages of what was packed anew, or they would count until the system wants them."""
    array: object = tensor.packed if isinstance(tensor, PackedTensor) else None
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)
