//! The FUSE protocol: device, mount, requests and replies.
