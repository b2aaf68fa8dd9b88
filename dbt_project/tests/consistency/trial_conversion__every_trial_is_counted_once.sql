-- Every organisation's trial is in one cohort, and each conversion too.
{{ config(
    meta={
        'description': 'Trials and conversions over all cohorts are those of the organisations.',
        'dagster': {'ref': {'name': 'trial_conversion'}},
    }
) }}

with

cohorts as (
    select
        scope,
        sum(trials) as trials,
        sum(converted_trials) as converted_trials
    from {{ ref('trial_conversion') }}
    group by scope
),

organisations as (
    select
        scope,
        count() as trials,
        countIf(is_converted) as converted_trials
    from {{ ref('int_trials') }}
    array join ['all', 'organisation'] as scope
    group by scope
)

select * from ({{ differences('organisations', 'cohorts') }})
