//! What the kernel says of a process, read. Pure.

/// Reads a field of `/proc/PID/stat` by its number in proc(5), from the third on.
pub fn stat_field(stat: &str, number: usize) -> Option<u64> {
    // The name in brackets may hold anything, so fields are counted behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.nth(number.checked_sub(3)?)?.parse().ok()
}

/// Reads the processor time of a process itself, in ticks.
pub fn own_ticks(stat: &str) -> Option<u64> {
    Some(stat_field(stat, 14)? + stat_field(stat, 15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_misleads_nobody() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0";
        assert_eq!(
            (own_ticks(stat), stat_field(stat, 3), stat_field(stat, 99)),
            (Some(42), None, None)
        );
        assert_eq!(own_ticks("nothing"), None);
    }
}
