//! What the kernel does for programs.

use super::{
    fault::Fault,
    machine::{Node, Way},
    memory::Memory,
};

const NAMES: [(i32, &str); 30] = [
    (1, "map_lookup_elem"),
    (2, "map_update_elem"),
    (3, "map_delete_elem"),
    (5, "ktime_get_ns"),
    (7, "get_prandom_u32"),
    (8, "get_smp_processor_id"),
    (9, "skb_store_bytes"),
    (10, "l3_csum_replace"),
    (11, "l4_csum_replace"),
    (12, "tail_call"),
    (23, "redirect"),
    (26, "skb_load_bytes"),
    (28, "csum_diff"),
    (38, "skb_change_tail"),
    (39, "skb_pull_data"),
    (44, "xdp_adjust_head"),
    (46, "get_socket_cookie"),
    (50, "skb_adjust_room"),
    (51, "redirect_map"),
    (65, "xdp_adjust_tail"),
    (69, "fib_lookup"),
    (93, "spin_lock"),
    (94, "spin_unlock"),
    (118, "jiffies64"),
    (122, "get_netns_cookie"),
    (130, "ringbuf_output"),
    (152, "redirect_neigh"),
    (160, "ktime_get_coarse_ns"),
    (187, "set_retval"),
    (188, "xdp_get_buff_len"),
];

/// What TC and XDP programs return to have a packet sent on.
const TC_REDIRECT: u64 = 7;

const ENOENT: i64 = -2;
const EINVAL: i64 = -22;
const EFAULT: i64 = -14;

/// The name of a helper, without what all begin with.
pub fn name(id: i32) -> String {
    NAMES
        .iter()
        .find(|(other, _)| *other == id)
        .map_or_else(|| format!("#{id}"), |(_, name)| (*name).to_owned())
}

/// Whether the kernel has a few instructions in place of a call, on x86-64.
pub fn is_inline(id: i32) -> bool {
    matches!(id, 8 | 118)
}

/// Calls a helper.
pub(super) fn call(memory: &mut Memory<'_>, node: &mut Node, id: i32, args: [u64; 5]) -> Result<u64, Fault> {
    let [first, second, third, fourth, fifth] = args;
    Ok(match id {
        1 => {
            let (map, key) = map_and_key(memory, first, second)?;
            *memory.trace.lookups.entry(map).or_default() += 1;
            let found = memory.maps[map].look_up(map, &key, &mut memory.trace)?;
            found.map_or(0, |at| Memory::value_address(map, at))
        }
        2 => {
            let (map, key) = map_and_key(memory, first, second)?;
            let value = memory.bytes(third, memory.maps[map].shape.value)?.to_vec();
            memory.maps[map].update(map, &key, &value, fourth, &mut memory.trace)? as u64
        }
        3 => {
            let (map, key) = map_and_key(memory, first, second)?;
            memory.maps[map].delete(map, &key, &mut memory.trace)? as u64
        }
        5 | 160 => node.clock_ns,
        7 => u64::from(random(node)),
        8 => 0,
        9 => store_bytes(memory, second, third, fourth as usize)?,
        11 => replace_l4_checksum(memory, second, third, fourth, fifth)?,
        // Arrays of programs are empty here, so that there is nothing to call.
        12 => ENOENT as u64,
        23 | 152 => TC_REDIRECT,
        26 => {
            let len = fourth as usize;
            let Some(bytes) = in_packet(memory, second, len) else { return Ok(EFAULT as u64) };
            let bytes = bytes.to_vec();
            memory.bytes(third, len)?.copy_from_slice(&bytes);
            0
        }
        // Frames of test runs are in one piece.
        39 => 0,
        69 => look_up_way(memory.bytes(second, 64)?, node.way.as_ref()),
        93 | 94 => {
            memory.bytes(first, 4)?;
            0
        }
        118 => node.jiffies,
        188 => memory.packet.len() as u64,
        _ => return Err(Fault::Helper(id)),
    })
}

fn map_and_key(memory: &mut Memory<'_>, map: u64, key: u64) -> Result<(usize, Vec<u8>), Fault> {
    let map = memory.map_of(map)?;
    let len = memory.maps[map].shape.key;
    Ok((map, memory.bytes(key, len)?.to_vec()))
}

/// Not what the kernel draws, but as well mixed.
fn random(node: &mut Node) -> u32 {
    node.random ^= node.random << 13;
    node.random ^= node.random >> 7;
    node.random ^= node.random << 17;
    (node.random >> 32) as u32
}

fn in_packet<'a>(memory: &'a mut Memory<'_>, off: u64, len: usize) -> Option<&'a mut [u8]> {
    let off = off as u32 as usize;
    memory.packet.get_mut(off..off.checked_add(len)?)
}

fn store_bytes(memory: &mut Memory<'_>, off: u64, from: u64, len: usize) -> Result<u64, Fault> {
    let bytes = memory.bytes(from, len)?.to_vec();
    let Some(to) = in_packet(memory, off, len) else { return Ok(EFAULT as u64) };
    to.copy_from_slice(&bytes);
    Ok(0)
}

/// Of a packet whose checksum is complete, by a difference.
fn replace_l4_checksum(
    memory: &mut Memory<'_>,
    off: u64,
    from: u64,
    difference: u64,
    flags: u64,
) -> Result<u64, Fault> {
    const SIZE: u64 = 0xf;
    const ZERO_IS_NONE: u64 = 0x20;
    if flags & SIZE != 0 || from != 0 {
        return Ok(EINVAL as u64);
    }
    let Some(check) = in_packet(memory, off, 2) else { return Ok(EFAULT as u64) };
    let old = u16::from_le_bytes([check[0], check[1]]);
    if flags & ZERO_IS_NONE != 0 && old == 0 {
        return Ok(0);
    }
    let mut sum = u64::from(!old) + (difference & 0xffff_ffff);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut new = !(sum as u16);
    if flags & ZERO_IS_NONE != 0 && new == 0 {
        new = 0xffff;
    }
    check.copy_from_slice(&new.to_le_bytes());
    Ok(0)
}

/// Fills in `struct bpf_fib_lookup`.
fn look_up_way(fib: &mut [u8], way: Option<&Way>) -> u64 {
    const AF_INET: u8 = 2;
    const NOT_FORWARDED: u64 = 4;
    let Some(way) = way else { return NOT_FORWARDED };
    // `tot_len`, which becomes `mtu_result`, and `ifindex`.
    let asks_mtu = fib[6..8] != [0; 2];
    if asks_mtu {
        fib[6..8].copy_from_slice(&way.mtu.to_le_bytes());
    }
    fib[8..12].copy_from_slice(&way.device.to_le_bytes());
    // Metric, destination and MAC addresses.
    fib[12..16].fill(0);
    if fib[0] == AF_INET {
        fib[32..36].copy_from_slice(&way.gateway4);
    } else {
        fib[32..48].copy_from_slice(&way.gateway6);
    }
    fib[48..52].fill(0);
    fib[52..58].copy_from_slice(&way.source);
    fib[58..64].copy_from_slice(&way.destination);
    0
}
