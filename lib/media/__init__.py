"""Video: probing, scene cuts, cutting clips, frames and optical flow."""
