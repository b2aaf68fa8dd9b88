-- Active users over all organisations, the last week.
SELECT
    toString(mart.day) AS "day",
    mart.active_anonymous_users AS "active",
    mart.business_active_users AS "business-active",
    mart.weekly_active_anonymous_users AS "in 7 days",
    mart.monthly_active_anonymous_users AS "in 30 days",
    mart.events AS "events"
FROM marts.daily_active_users AS mart
WHERE mart.scope = 'all'
ORDER BY mart.day DESC
LIMIT 7
