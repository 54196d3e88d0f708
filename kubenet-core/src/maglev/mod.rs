//! Consistent hashing: a table that sends each client to one backend, the same on every node, and that hardly
//! changes when the backends do.
//!
//! A [`Table`] has a fixed number of slots. Each slot belongs to one backend. A client's address is hashed to a
//! slot, and the owner of the slot serves the client. A datapath needs nothing else for a packet: one hash and
//! one array. What Maglev is known for holds here:
//!
//! - **Nodes agree.** The table is a function of the addresses, ports and weights of the backends and of the
//!   size. Order of input, history, process and byte order of the machine do not matter. All arithmetic is on
//!   integers, with the constants given below.
//! - **A change moves little.** When a backend leaves, only its own clients move. When it comes back, the same
//!   clients return to it. When its weight changes, clients move only to it or only away from it. This is exact
//!   and not an average: moved / ideal is 1.
//! - **Shares follow weights**, as evenly as the number of slots allows.
//!
//! ```
//! use std::{net::SocketAddr, num::NonZeroU16};
//! use kubenet_core::maglev::Table;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let one = NonZeroU16::MIN;
//! let backends: Vec<SocketAddr> = vec!["10.244.1.2:8080".parse()?, "10.244.2.2:8080".parse()?];
//! let mut table = Table::new(backends.iter().map(|&address| (address, one)));
//! let client = "192.0.2.7".parse()?;
//! let chosen = table.get(client).ok_or("no backends")?;
//!
//! table.insert("10.244.3.2:8080".parse()?, one);
//! table.remove("10.244.3.2:8080".parse()?);
//! assert_eq!(table.get(client), Some(chosen));
//!
//! table.remove(chosen);
//! assert!(table.get(client).is_some_and(|other| other != chosen));
//! # Ok(())
//! # }
//! ```
//!
//! # Who owns a slot
//! In Maglev each backend has a permutation of the slots, its order of preference. Backends take turns, and in
//! its turn a backend takes *the next slot on its list that is free*. The shares are equal to one slot, but what
//! a backend takes depends on what the others took before it. One backend less, and slots of backends that
//! stayed change hands, too. Here a backend whose next slot is taken *loses the turn*. A slot then belongs to the
//! backend that has it nearest to the top of its list, whatever the others do. This is rendezvous hashing with
//! permutations in place of independent random numbers, and a permutation halves the variance of the shares.
//!
//! Measured with `cargo bench --bench maglev`, where each of the backends leaves in turn, or 100 of the 1,000.
//! Moved / ideal is the clients that moved over those of the backend that left; max / mean is the largest share of
//! the slots over the mean share, on average of 20 sets.
//!
//! | slots | backends | plain Maglev: moved / ideal | max / mean | this table: moved / ideal | max / mean |
//! |---|---|---|---|---|---|
//! | 16,384 | 3 | 1.00 | 1.00 | 1 | 1.01 |
//! | 16,384 | 10 | 1.05 | 1.00 | 1 | 1.03 |
//! | 16,384 | 100 | 2.26, at worst 2.46 | 1.00 | 1 | 1.14 |
//! | 16,384 | 1,000 | 6.42, at worst 8.41 | 1.04 | 1 | 1.61 |
//! | 65,536 | 10 | 1.03 | 1.00 | 1 | 1.01 |
//! | 65,536 | 100 | 1.55, at worst 1.62 | 1.00 | 1 | 1.07 |
//! | 65,536 | 1,000 | 6.70, at worst 7.89 | 1.01 | 1 | 1.29 |
//!
//! So when one of 100 backends leaves 16,384 slots, plain Maglev moves its clients and more than as many of the
//! backends that stay. The price of moving none of those is that shares are less even: their standard deviation
//! is `sqrt(backends / 2 slots)`, which is 5.5% in this case. With independent random numbers it is 7.8%, and
//! max / mean is 1.21.
//!
//! # Size
//! The size is chosen once, and is no function of the backends: [`TableSize::DEFAULT`] slots, unless the caller
//! wants another size. A size that followed the number of backends would change whenever a Service crosses a step,
//! and no node could put that off without a history that all nodes share. The slots of a larger table divide those
//! of a smaller one, but their owners are drawn anew, so that nearly all clients would move.
//!
//! 16,384 slots are 32 KiB and serve some hundred backends well. [`TableSize::for_backends`] is for a Service that
//! is known to grow larger, and for thousands of Services that are known to stay small: 4,096 slots are 8 KiB, and
//! 10 backends have a max / mean of 1.05 on them.
//!
//! # Hash of a client
//! Only the address counts, never a port. Fragments, which carry no ports, and ICMP errors then agree with the flow
//! that they belong to, and a client stays on one backend with all its connections, on whichever node they arrive.
//! An IPv4 address and the same address mapped into IPv6 are one client.
//!
//! Let `hi` and `lo` be the upper and lower 64 bits of the IPv6 address, read as big-endian numbers. For an IPv4
//! address they are those of the mapped address: `hi = 0`, `lo = 0x0000_ffff_0000_0000 | address`. All
//! arithmetic is unsigned, on 64 bits, and wraps:
//!
//! ```text
//! mix(x):  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
//!          x = (x ^ (x >> 27)) * 0x94d049bb133111eb
//!          return x ^ (x >> 31)
//!
//! address_hash = mix(mix(hi) ^ lo)            for IPv4 mix(lo), as mix(0) = 0
//! client_hash  = address_hash >> 32           32 bits
//! slot         = client_hash * size >> 32     the upper bits of client_hash, as sizes are powers of two
//! ```
//!
//! `mix` is the finalizer of SplitMix64. The hash has no secret: a client that can choose its address can choose
//! its backend.
//!
//! # Rank and score
//! `id = mix(address_hash ^ port)` of the backend, and `draw(n) = mix(id + n * 0x9e3779b97f4a7c15)`. With
//! `size = 2^k` and `h = k / 2` rounded up, the rank of a slot in a backend's preference is, on k bits:
//!
//! ```text
//! x = slot ^ draw(1);  for m in [draw(1) >> 32, draw(2), draw(2) >> 32]:  x = x * (m | 1);  x = x ^ (x >> h)
//! ```
//!
//! `wait(rank)` is the sum of `floor(2^28 / (size - j))` for j from 0 to the rank: what the smallest, second
//! smallest and so on of `size` exponentially distributed numbers are on average. The score of a slot is
//! `wait(rank) * floor(2^32 / weight)`, and the lowest score owns the slot. Among equal scores the lower
//! `draw(slot + 3)` does, and then the lower address.

mod contest;
mod hash;
mod preference;
mod size;
mod table;
#[cfg(test)]
mod tests;

pub use self::{hash::client_hash, size::TableSize, table::Table};
