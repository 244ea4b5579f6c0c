//! What telemetry may do to a pool.

use super::*;

#[track_caller]
fn check_limit(pool: &[(bool, Option<u64>)], refused: &[usize]) {
    let mut members: Vec<PoolMember> = pool
        .iter()
        .map(|&(serving, fault_since_ns)| PoolMember {
            capacity: 10,
            weight: if serving && fault_since_ns.is_none() {
                10_000
            } else {
                0
            },
            serving,
            fault_since_ns,
        })
        .collect();
    assert_eq!(limit_drains(&mut members, &Tuning::default()), refused);
    for (position, member) in members.iter().enumerate() {
        let expected = match (member.serving, member.fault_since_ns, refused.contains(&position)) {
            (true, None, _) => 10_000,
            (_, _, true) => 500,
            _ => 0,
        };
        assert_eq!(member.weight, expected, "member {position}");
    }
}

#[test]
fn telemetry_never_drains_more_than_half_of_a_pool() {
    check_limit(&[], &[]);
    check_limit(&[(true, Some(1))], &[0]);
    check_limit(&[(true, Some(1)), (true, None)], &[]);
    check_limit(&[(true, Some(2)), (true, Some(1))], &[0]);
    check_limit(
        &[(true, Some(1)), (true, Some(1)), (true, Some(1)), (true, Some(1))],
        &[2, 3],
    );
    check_limit(
        &[(false, None), (true, Some(1)), (true, Some(2)), (true, None)],
        &[2],
    );
    check_limit(
        &[(false, None), (false, Some(1)), (true, Some(2)), (true, None)],
        &[2],
    );
}
