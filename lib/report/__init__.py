"""What people look at: contact sheets, pictures of optical flow, dataset cards."""
