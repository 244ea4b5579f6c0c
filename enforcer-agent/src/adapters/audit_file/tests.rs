use std::fs;

use super::*;
use crate::pure::audit::{Chain, verify_chain};

fn settings(directory: &Path) -> Settings {
    Settings {
        directory: directory.to_owned(),
        segment_bytes: 2048,
        identity: Identity {
            host: "lb-1".into(),
            boot_id: "b0".into(),
        },
        queue_records: 4096,
    }
}

fn entry(number: u64) -> Entry {
    Entry {
        count: Some(number),
        ..Entry::new(Kind::Refused, Timestamp::UNIX_EPOCH, number, 3)
    }
}

/// All lines of all segments, which must form a chain.
fn checked_lines(directory: &Path) -> Vec<String> {
    let lines: Vec<String> = segment::segments(directory)
        .unwrap()
        .iter()
        .flat_map(|(_, path)| {
            let text = fs::read_to_string(path).unwrap();
            assert!(text.ends_with('\n'), "{} ends within a line", path.display());
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    verify_chain(&lines, Some(Chain::default())).expect("the chain holds");
    lines
}

async fn write(directory: &Path, numbers: std::ops::Range<u64>) -> LogStatus {
    let log = AuditLog::open(settings(directory)).unwrap();
    let handle = log.handle();
    for number in numbers {
        handle.record(entry(number));
    }
    log.close().await;
    handle.status()
}

#[tokio::test]
async fn records_are_chained_over_segments_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let first = write(directory.path(), 0..50).await;
    assert_eq!((first.sequence, first.written, first.lost), (50, 50, 0));
    let second = write(directory.path(), 50..60).await;
    assert_eq!((second.sequence, second.written), (60, 10));
    let lines = checked_lines(directory.path());
    let segments = segment::segments(directory.path()).unwrap();
    assert!(segments.len() > 1, "2 KiB do not hold 60 records");
    assert_eq!(lines.len(), 60 + segments.len());
    assert_eq!(segments[0].0, 1);
    assert!(second.segment.unwrap().starts_with(directory.path()));
}

#[tokio::test]
async fn a_control_record_is_written_when_its_caller_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(settings(directory.path())).unwrap();
    log.handle().record(entry(0));
    let sequence = log.handle().record_synced(entry(1)).await.unwrap();
    assert_eq!(sequence, 2);
    assert_eq!(checked_lines(directory.path()).len(), 3);
    let handle = log.handle();
    log.close().await;
    assert!(matches!(
        handle.record_synced(entry(2)).await,
        Err(AuditError::Closed)
    ));
    handle.record(entry(3));
    assert_eq!(handle.status().lost, 1);
}

#[tokio::test]
async fn a_torn_line_is_cut_off_and_that_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 0..3).await;
    let (_, path) = segment::segments(directory.path()).unwrap().pop().unwrap();
    let whole = fs::read(&path).unwrap();
    // Half a line; a whole line of zeroes, as after power loss; a line break in half a line.
    for torn in [
        &b"{\"sequence\":4,\"ho"[..],
        &[0; 100][..],
        &b"{\"sequence\":4,\"ho\n\0\0\n"[..],
    ] {
        fs::write(&path, [&whole, torn].concat()).unwrap();
        let status = write(directory.path(), 3..4).await;
        assert_eq!(status.sequence, 5);
        let lines = checked_lines(directory.path());
        let repaired = lines
            .iter()
            .find(|line| line.contains("Repaired"))
            .expect("the repair is recorded");
        assert!(
            repaired.contains(&format!("\"count\":{},", torn.len())),
            "{repaired}"
        );
        assert!(lines.last().unwrap().contains("Refused"));
        for (_, later) in segment::segments(directory.path()).unwrap().iter().skip(1) {
            fs::remove_file(later).unwrap();
        }
    }
}

#[tokio::test]
async fn a_segment_without_a_header_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 0..3).await;
    fs::write(
        directory.path().join("audit-00000000000000000004.jsonl"),
        "{\"segm",
    )
    .unwrap();
    let status = write(directory.path(), 3..4).await;
    assert_eq!(status.sequence, 5);
    assert_eq!(checked_lines(directory.path()).len(), 7);
}

#[tokio::test]
async fn what_is_no_log_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 0..3).await;
    fs::write(directory.path().join("audit-00000000000000000009.jsonl"), "").unwrap();
    let error = AuditLog::open(settings(directory.path())).unwrap_err();
    assert!(matches!(error, AuditError::Corrupt { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("audit-00000000000000000009.jsonl does not follow record 3"),
        "{error}"
    );
}

#[tokio::test]
async fn two_agents_cannot_write_one_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(settings(directory.path())).unwrap();
    let second = AuditLog::open(settings(directory.path())).unwrap_err();
    assert!(matches!(second, AuditError::InUse { .. }), "{second}");
    log.close().await;
    AuditLog::open(settings(directory.path())).unwrap().close().await;
}

#[tokio::test]
async fn the_tail_is_found_by_number_and_from_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let large = Settings {
        segment_bytes: 300_000,
        ..settings(directory.path())
    };
    let log = AuditLog::open(large).unwrap();
    let handle = log.handle();
    for number in 1..4000 {
        handle.record(entry(number));
    }
    handle.record_synced(entry(4000)).await.unwrap();
    assert!(segment::segments(directory.path()).unwrap().len() > 1);
    for from in [1, 2, 999, 1500, 2048, 3990, 4000] {
        let (records, next) = handle.tail(Some(from), 5).await.unwrap();
        let found: Vec<u64> = records.iter().map(|record| record.sequence).collect();
        let expected: Vec<u64> = (from..=4000).take(5).collect();
        assert_eq!(found, expected);
        assert_eq!(next, expected.last().unwrap() + 1);
        assert!(
            records
                .iter()
                .all(|record| record.entry.count == Some(record.sequence))
        );
    }
    let (last, next) = handle.tail(None, 3).await.unwrap();
    assert_eq!((last[0].sequence, last.len(), next), (3998, 3, 4001));
    let (none, next) = handle.tail(Some(4001), 3).await.unwrap();
    assert_eq!((none.len(), next), (0, 4001));
    assert_eq!(handle.tail(None, 0).await.unwrap().0.len(), 0);
    log.close().await;
}

#[tokio::test]
async fn a_record_that_is_too_long_is_shortened_and_its_neighbours_stay() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(settings(directory.path())).unwrap();
    let change = Change {
        what: "policyApply".into(),
        to: Some("x".repeat(300 << 10)),
        ..Change::default()
    };
    log.handle().record(entry(0));
    log.handle().record(Entry {
        change: Some(change),
        ..entry(1)
    });
    log.handle().record_synced(entry(2)).await.unwrap();
    let (records, _) = log.handle().tail(Some(2), 2).await.unwrap();
    let shortened = records[0].entry.change.as_ref().unwrap();
    assert_eq!(
        (shortened.what.as_str(), shortened.to.as_ref()),
        ("policyApply", None)
    );
    assert_eq!(records[1].entry.count, Some(2));
    log.close().await;
}

#[tokio::test]
async fn a_full_queue_counts_losses_and_records_them() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(Settings {
        queue_records: 1,
        ..settings(directory.path())
    })
    .unwrap();
    let handle = log.handle();
    let mut sent = 0;
    while handle.status().lost == 0 {
        handle.record(entry(sent));
        sent += 1;
    }
    handle.record_synced(entry(sent)).await.unwrap();
    log.close().await;
    let lines = checked_lines(directory.path());
    let lost: u64 = lines
        .iter()
        .filter(|line| line.contains("\"auditQueue\""))
        .map(|line| {
            line.split("\"count\":")
                .nth(1)
                .unwrap()
                .split(',')
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum();
    assert_eq!(lost, handle.status().lost);
    let refused = lines.iter().filter(|line| line.contains("\"Refused\"")).count() as u64;
    assert_eq!(refused + lost, sent + 1, "every record is in the log or counted");
}

/// A file system of 128 KiB, unmounted at the end of the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` without the privilege to mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOSUID;
        let mounted = rustix::mount::mount("none", directory.path(), "tmpfs", flags, Some(c"size=128k"));
        mounted.is_ok().then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_loses_records_countably_and_is_recovered_from() {
    let Some(disk) = SmallDisk::mount() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs as root and must not skip this"
        );
        println!("SKIPPED: mounting a small tmpfs needs root");
        return;
    };
    let filler = disk.0.path().join("filler");
    let audit = disk.0.path().join("audit");
    let log = AuditLog::open(Settings {
        segment_bytes: 1 << 20,
        ..settings(&audit)
    })
    .unwrap();
    let handle = log.handle();
    handle.record_synced(entry(0)).await.unwrap();
    fs::write(&filler, vec![0; 64 << 10]).unwrap();
    let mut number = 1;
    let failure = loop {
        handle.record(entry(number));
        number += 1;
        if let Err(failure) = handle.record_synced(entry(number)).await {
            break failure;
        }
        number += 1;
    };
    assert!(failure.to_string().contains("No space left"), "{failure}");
    assert!(handle.status().error.unwrap().contains("No space left"));
    // What was written stays whole while the disk is full.
    checked_lines(&audit);

    fs::remove_file(&filler).unwrap();
    handle
        .record_synced(entry(number + 1))
        .await
        .expect("there is room again");
    let status = handle.status();
    log.close().await;
    let lines = checked_lines(&audit);
    let notice = lines
        .iter()
        .find(|line| line.contains("\"kind\":\"Lost\""))
        .expect("the loss is recorded");
    assert!(
        notice.contains(&format!("\"count\":{},", status.lost)),
        "{notice}"
    );
    let refused = lines.iter().filter(|line| line.contains("\"Refused\"")).count() as u64;
    assert_eq!(
        refused + status.lost,
        number + 2,
        "every record is in the log or counted"
    );
    assert_eq!(status.error, None);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = AuditLog::open(settings(&file.join("audit"))).unwrap_err();
    assert!(error.to_string().contains("file/audit"), "{error}");
}
