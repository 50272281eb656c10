//! What K3s needs of a host and often does not find: control groups and a name server. Shell over pure readings.

use std::path::Path;

/// Without these kubelet does not start (K3s, `pkg/cgroups`).
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Says what this host lacks, each with what to do about it; nothing where all is well.
pub(super) fn lacks(root: &Path) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let unified = read("sys/fs/cgroup/cgroup.controllers");
    let groups = cgroups(unified.as_deref(), &read("proc/cgroups").unwrap_or_default());
    groups.into_iter().chain(name_server(&read("etc/resolv.conf").unwrap_or_default())).collect()
}

/// Reads cgroup.controllers of a host with version 2 alone, else the table of version 1 (cgroups(7)).
fn cgroups(unified: Option<&str>, table: &str) -> Option<String> {
    let enabled = |controller: &str| match unified {
        Some(list) => list.split_whitespace().any(|c| c == controller),
        None => table.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&controller) && words.get(3) == Some(&"1")
        }),
    };
    // A host that shows neither cannot be judged.
    if unified.is_none() && table.is_empty() {
        return None;
    }
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|c| !enabled(c)).collect();
    let what = missing.join(", ");
    match missing.as_slice() {
        [] => None,
        ["memory"] => Some(
            "the memory control group: add cgroup_memory=1 cgroup_enable=memory to the kernel's command line and reboot"
                .into(),
        ),
        _ => Some(format!("the control groups {what}: see `k3s check-config`")),
    }
}

fn name_server(resolv: &str) -> Option<String> {
    let named = resolv.lines().any(|line| line.trim_start().starts_with("nameserver"));
    (!named).then(|| "a name server in /etc/resolv.conf, without which no image is pulled".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_both_versions_are_read() {
        assert_eq!(cgroups(Some("cpuset cpu io memory hugetlb pids\n"), ""), None);
        let why = cgroups(Some("cpuset cpu io pids\n"), "").unwrap();
        assert!(why.contains("cgroup_enable=memory"), "{why}");
        let table = |memory: u8| {
            format!(
                "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t2\t1\t1\ncpu\t3\t1\t1\nmemory\t0\t1\t{memory}\npids\t9\t1\t1\n"
            )
        };
        assert_eq!(cgroups(None, &table(1)), None);
        let why = cgroups(None, &table(0)).unwrap();
        assert!(why.contains("memory"), "{why}");
        let why = cgroups(Some("memory\n"), "").unwrap();
        assert!(why.contains("cpu, cpuset, pids"), "{why}");
        assert_eq!(cgroups(None, ""), None);
    }

    #[test]
    fn a_host_without_a_name_server_is_told_of() {
        assert_eq!(name_server("# x\n nameserver 192.0.2.1\n"), None);
        assert!(name_server("search example.org\n#nameserver 192.0.2.1\n").is_some());
        assert!(name_server("").is_some());
    }
}
