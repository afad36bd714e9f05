"""The GPU path: decoding with NVDEC, and colours, scaling, scores and TransNetV2 with torch.

Importing this package imports neither torch nor NVIDIA's modules; what needs them says so in one
line where they are missing. What runs on a card runs on torch's CPU device, too, but for NVDEC.
"""
