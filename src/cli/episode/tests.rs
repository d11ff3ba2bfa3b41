//! The numbers against ones made by hand, the picture and the table as they are read, and texts that try to be markup.

use super::metrics::{Metrics, measure};
use super::*;

/// Two joints, the second of which never moves; a chunk at the first frame and one that runs beyond the end.
fn tiny() -> Compared {
    let chunk = |frame, actions: [[f64; 2]; 3]| Chunk {
        frame,
        actions: actions.map(Vec::from).to_vec(),
        images: vec![],
        prompt: "fold the towel".to_owned(),
        infer_ms: 60.0 + frame as f64,
    };
    Compared {
        title: "aloha_tiny, episode 0".to_owned(),
        subtitle: "pi0_aloha · f32 · checkpoints/tiny".to_owned(),
        fps: 2.0,
        joints: vec!["waist".to_owned(), "gripper".to_owned()],
        recorded: vec![vec![0.0, 1.0], vec![1.0, 1.0], vec![2.0, 1.0], vec![4.0, 1.0]],
        first_frame: 0,
        chunks: vec![chunk(0, [[0.0, 1.0], [1.5, 1.0], [3.0, 1.5]]), chunk(2, [[2.0, 1.0], [3.0, 1.0], [99.0, 99.0]])],
    }
}

/// Tags are closed in the order in which they were opened.
fn well_formed(text: &str) -> bool {
    let mut open = vec![];
    for tag in text.split('<').skip(1) {
        let Some((tag, _)) = tag.split_once('>') else { return false };
        let name = tag.split_whitespace().next().unwrap_or_default();
        if tag.matches('"').count() % 2 == 1 {
            return false;
        } else if let Some(name) = name.strip_prefix('/') {
            if open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') && !["!DOCTYPE", "meta", "img"].contains(&name) {
            open.push(name);
        }
    }
    open.is_empty()
}

#[test]
fn errors_are_those_made_by_hand_and_steps_beyond_the_end_do_not_count() {
    let metrics = measure(&tiny()).unwrap();
    assert_eq!((metrics.compared, metrics.padded, metrics.not_finite), (5, 1, 0));
    // waist: 0, 0.5, 1 of the first chunk, 0, 1 of the second; its range is 4.
    let waist = metrics.joints[0].scores.policy.unwrap();
    assert_eq!((waist.values, waist.mae, waist.max), (5, 0.5, 1.0));
    assert_eq!((waist.rmse, waist.mae_of_range), (0.45_f64.sqrt(), Some(0.125)));
    // Held: frame 0's own action from frame 0 on, frame 1's from frame 2 on: 0, 1, 2 and 1, 3.
    let hold = metrics.joints[0].scores.hold.unwrap();
    assert_eq!((hold.mae, hold.max), (1.4, 3.0));
    assert_eq!(metrics.joints[1].scores.policy.unwrap().mae_of_range, None);
    assert_eq!(metrics.joints[1].recorded, Some([1.0, 1.0]));
    // The still joint has no share; the other's decide.
    let part = metrics.all.against_holding().unwrap();
    assert!((part - 0.5 / 1.4).abs() < 1e-12, "{part}");
    let by_step: Vec<_> = metrics.steps.iter().map(|s| s.scores.policy.unwrap()).map(|s| (s.values, s.max)).collect();
    assert_eq!(by_step, [(4, 0.0), (4, 1.0), (2, 1.0)]);
    assert_eq!(metrics.infer_ms_p50, 60.0);
    assert_eq!(metrics.worst_first()[0].name, "waist");
}

#[test]
fn the_table_and_the_picture() {
    let (compared, metrics) = (tiny(), measure(&tiny()).unwrap());
    insta::assert_snapshot!("table", metrics.table());
    insta::assert_snapshot!("panels", svg::panels(&compared, &metrics).unwrap());
    insta::assert_snapshot!("horizon", svg::horizon(&metrics));
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&metrics).unwrap());
}

#[test]
fn no_chunk_no_frame_and_no_joint_are_errors() {
    let refused = |change: fn(&mut Compared)| {
        let mut compared = tiny();
        change(&mut compared);
        measure(&compared).unwrap_err().to_string()
    };
    assert!(refused(|c| c.chunks.clear()).contains("no chunk"));
    assert!(refused(|c| c.recorded.clear()).contains("no frame"));
    assert!(refused(|c| c.joints.clear()).contains("no dim"));
    assert!(refused(|c| c.fps = 0.0).contains("fps"));
    assert!(refused(|c| c.chunks[1].frame = 4).contains("the episode has 0 to 3"));
    assert!(refused(|c| c.first_frame = 1).contains("a chunk at frame 0: the episode has 1 to 4"));
    assert!(refused(|c| c.recorded[2].truncate(1)).contains("frame 2: expected 2 dims, recorded are 1"));
    assert!(refused(|c| c.chunks[1].actions[0].truncate(1)).contains("frame 2: expected 2 dims, predicted are 1"));
    assert!(refused(|c| c.chunks[1].actions.truncate(2)).contains("expected 3 steps, predicted are 2"));
    assert!(refused(|c| c.chunks.iter_mut().for_each(|c| c.actions.clear())).contains("no steps"));
}

#[test]
fn an_episode_of_one_frame_is_drawn_and_nothing_moved_in_it() {
    let mut compared = tiny();
    compared.recorded.truncate(1);
    compared.chunks.truncate(1);
    let metrics = measure(&compared).unwrap();
    assert_eq!((metrics.compared, metrics.padded), (1, 2));
    assert!(metrics.verdict().contains("no joint moved"), "{}", metrics.verdict());
    let page = html::page(&compared, &metrics).unwrap();
    assert!(well_formed(&page) && !page.contains("NaN") && !page.contains("inf\""), "{page}");
    assert!(page.contains("h0\""), "a lone frame is a dot");
}

#[test]
fn frames_are_counted_from_the_first_that_was_recorded() {
    let mut later = tiny();
    later.first_frame = 100;
    later.chunks.iter_mut().for_each(|chunk| chunk.frame += 100);
    assert_eq!(measure(&later).unwrap().all.policy, measure(&tiny()).unwrap().all.policy);
    let text = svg::panels(&later, &measure(&later).unwrap()).unwrap();
    // Frames 100 to 103 at 2 fps: from 50 s on.
    assert!(text.contains(">50.0<") && !text.contains(">0.5<"), "{text}");
}

#[test]
fn values_that_are_not_finite_are_counted_and_left_out() {
    let mut compared = tiny();
    compared.chunks[0].actions[1][0] = f64::NAN;
    compared.recorded[3][1] = f64::INFINITY;
    compared.recorded[2][1] = 1e200;
    let metrics = measure(&compared).unwrap();
    assert_eq!(metrics.not_finite, 4);
    let page = html::page(&compared, &metrics).unwrap();
    assert!(well_formed(&page) && !page.contains("NaN"), "{page}");
    assert!(page.contains("4 values are not finite"));
    // The line has a gap where the value is none: the pen is put down twice.
    let path = page.split("class=\"chunk\" stroke=\"#0072b2\" d=\"").nth(2).unwrap();
    assert_eq!(path.split('"').next().unwrap().matches('M').count(), 2, "{path}");
    compared.chunks.iter_mut().for_each(|c| c.actions.iter_mut().for_each(|a| a.fill(f64::NAN)));
    let metrics = measure(&compared).unwrap();
    assert!(metrics.all.policy.is_none() && metrics.table().contains('–'));
    assert!(well_formed(&html::page(&compared, &metrics).unwrap()));
}

#[test]
fn no_text_becomes_markup() {
    let evil = "<script>alert('&\"')</script>\u{1}\u{ffff}";
    let mut compared = tiny();
    compared.title = evil.to_owned();
    compared.subtitle = evil.to_owned();
    compared.joints = vec![evil.to_owned(), format!("{}{evil}", "long ".repeat(30))];
    compared.chunks[0].prompt = evil.to_owned();
    compared.chunks[0].images = vec![(evil.to_owned(), b"\x89PNG".to_vec())];
    let metrics = measure(&compared).unwrap();
    for text in [svg::panels(&compared, &metrics).unwrap(), html::page(&compared, &metrics).unwrap()] {
        assert!(well_formed(&text), "{text}");
        assert!(!text.contains("<script") && !text.contains('\u{1}') && !text.contains("alert('"), "{text}");
    }
    let page = html::page(&compared, &metrics).unwrap();
    assert!(page.contains("<blockquote>&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;"));
    assert!(page.contains("base64,iVBORw==\""));
    assert!(!page.contains("http://") || page.matches("http://").count() == page.matches("xmlns=\"http://").count());
}

/// An arm that sways, and a policy that follows it with a little lag: `joints` of them over `frames`.
fn swaying(joints: usize, frames: usize) -> Compared {
    let at = |j: usize, frame: f64| (frame / 50.0 * (1.0 + j as f64 * 0.13)).sin() * 10_f64.powi(j as i32 % 4 - 2);
    let action = |frame: f64| (0..joints).map(|j| at(j, frame)).collect::<Vec<_>>();
    let chunk = |frame: usize| Chunk {
        frame,
        actions: (0..50).map(|h| action(frame as f64 + h as f64 * 0.93)).collect(),
        images: vec![],
        prompt: "sway".to_owned(),
        infer_ms: 61.0,
    };
    Compared {
        title: format!("swaying, {joints} joints"),
        subtitle: "no checkpoint: a lag of 7 %".to_owned(),
        fps: 50.0,
        joints: (0..joints).map(|j| format!("joint_{j}")).collect(),
        recorded: (0..frames).map(|frame| action(frame as f64)).collect(),
        first_frame: 0,
        chunks: (0..frames).step_by(40).map(chunk).collect(),
    }
}

#[test]
fn seven_to_thirty_two_joints_have_a_panel_each_and_each_chunk_a_line() {
    for (joints, frames) in [(1, 90), (7, 300), (14, 400), (32, 2000)] {
        let compared = swaying(joints, frames);
        let metrics: Metrics = measure(&compared).unwrap();
        let text = svg::panels(&compared, &metrics).unwrap();
        assert!(well_formed(&text));
        assert_eq!(text.matches("class=\"frame\"").count(), joints);
        let legend = compared.chunks.len().min(4);
        assert_eq!(text.matches("class=\"chunk\"").count(), joints * compared.chunks.len() + legend);
        assert!(text.len() < joints * (1 << 16), "{} bytes", text.len());
        assert!(metrics.all.against_holding().unwrap() < 0.5, "{}", metrics.table());
        let page = html::page(&compared, &metrics).unwrap();
        assert!(well_formed(&page));
    }
}
