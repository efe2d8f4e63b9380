#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Goal: the demo does the main job, within the numbers promised for it. Method: its own --json.
set -euo pipefail
result=$(tools/demo --json)
echo "$result"
jq -e '.identical and .identical_after_flip
    and .restored_tokens >= 0.9 * .prompt_tokens
    and .forwarded_tokens_warm <= 0.1 * .prompt_tokens
    and .ttft_warm_ms <= 0.3 * .ttft_cold_ms
    and .stored_bytes < .raw_bytes
    and .restored_tokens_after_flip < .restored_tokens
    and .corrupt == 1' <<<"$result" >/dev/null
