//! The other end of the external device: a TAP device, whose checksum and segmentation offloads are ours.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// Where a checksum that is to be completed begins, and where it is written from there.
    pub checksum: Option<(u16, u16)>,
    /// `VIRTIO_NET_HDR_GSO_*`, bytes of all headers, and payload of a segment.
    pub segments: Option<(u8, u16, u16)>,
}

const HEADER: usize = 10;

#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Opens a TAP device that exists, with offload headers.
    pub fn open(name: &str) -> Self {
        nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);

        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("open /dev/net/tun");
        // SAFETY: every bit pattern is an ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is initialised, and the kernel only reads and writes inside of it.
        unsafe { set_interface(file.as_raw_fd(), &raw const request) }.expect("attach to the TAP device");
        Self(file)
    }

    /// Lets a frame come in.
    pub fn send(&mut self, frame: &[u8], offload: Offload) {
        let mut bytes = vec![0; HEADER];
        if let Some((start, offset)) = offload.checksum {
            bytes[0] = 1;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some((kind, headers, size)) = offload.segments {
            bytes[1] = kind;
            bytes[2..4].copy_from_slice(&headers.to_ne_bytes());
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        bytes.extend(frame);
        assert_eq!(self.0.write(&bytes).expect("send"), bytes.len());
    }

    /// The next frame that goes out and is about this port, or none within a second.
    pub fn receive(&mut self, port: u16) -> Option<Vec<u8>> {
        self.receive_with(&port.to_be_bytes())
    }

    /// The next frame that goes out and has these bytes in it.
    pub fn receive_with(&mut self, wanted: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        loop {
            let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(1000u16)).expect("poll") == 0 {
                return None;
            }
            let len = self.0.read(&mut buffer).expect("receive");
            let frame = &buffer[HEADER..len];
            // Neighbour discovery and the like goes out, too.
            if frame.windows(wanted.len()).any(|bytes| bytes == wanted) {
                return Some(frame.to_vec());
            }
        }
    }
}
