"""Models in files, without pickle: our own safetensors files and state dictionaries, and ONNX files, read layer by layer and compared with their run."""

from lde_cvx.model_files.onnx_reader import load_onnx
from lde_cvx.model_files.safetensors_files import FORMAT, checker_network, describe, load_model, load_torch_state, save_model

__all__ = ["FORMAT", "checker_network", "describe", "load_model", "load_onnx", "load_torch_state", "save_model"]
