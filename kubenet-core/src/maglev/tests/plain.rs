//! Maglev as published, to compare with: backends take turns, and each takes the next slot on its list that is
//! free. The benchmark includes this file, too.

/// The owner of each slot, from two random numbers of each backend. There is a backend, and `size` is a prime.
pub(super) fn plain_maglev(backends: &[(u64, u64)], size: usize) -> Vec<u16> {
    let modulus = size as u64;
    let mut lists: Vec<_> = backends
        .iter()
        .map(|(offset, skip)| ((offset % modulus) as usize, (skip % (modulus - 1)) as usize + 1))
        .collect();
    let mut slots = vec![None; size];
    let mut free = size;
    loop {
        for (index, (next, skip)) in lists.iter_mut().enumerate() {
            while slots[*next].is_some() {
                *next += *skip;
                if *next >= size {
                    *next -= size;
                }
            }
            slots[*next] = Some(index as u16);
            free -= 1;
            if free == 0 {
                return slots.into_iter().flatten().collect();
            }
        }
    }
}
