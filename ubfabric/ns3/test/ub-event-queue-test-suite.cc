// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ns3/test.h"
#include "ns3/ub-event-queue.h"

#include <algorithm>
#include <random>
#include <set>
#include <tuple>
#include <vector>

using namespace ns3;

namespace
{

/// Time, key and payload of an event.
using Entry = std::tuple<int64_t, uint32_t, uint32_t>;

/**
 * @param [in] entry What to add.
 * @param [in,out] queue The queue.
 */
void
Push(UbEventQueue& queue, const Entry& entry)
{
    queue.Push(std::get<0>(entry), std::get<1>(entry), std::get<2>(entry));
}

/**
 * @param [in,out] queue A queue, empty afterwards.
 * @return All its events as they leave.
 */
std::vector<Entry>
PopAll(UbEventQueue& queue)
{
    std::vector<Entry> out;
    UbEventQueue::Event event;
    while (queue.PopBefore(UB_NEVER, event))
    {
        out.emplace_back(event.timePs, event.key, event.payload);
    }
    return out;
}

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief Order does not depend on how events came in.
 */
class UbEventQueueOrderTestCase : public TestCase
{
  public:
    UbEventQueueOrderTestCase()
        : TestCase("events leave by time, key and payload whatever the order of insertion")
    {
    }

  private:
    void DoRun() override
    {
        // many ties: 4 times of one bucket and of several, 3 keys, 3 payloads, one event twice
        std::vector<Entry> entries{{5, 1, 1}};
        for (const int64_t time : {0, 5, 6, 5000, 5001, 900'000})
        {
            for (const uint32_t key : {0U, 1U, 0xffffffffU})
            {
                for (const uint32_t payload : {0U, 1U, 0xffffffffU})
                {
                    entries.emplace_back(time, key, payload);
                }
            }
        }
        std::vector<Entry> sorted = entries;
        std::sort(sorted.begin(), sorted.end());
        std::mt19937 random(1);
        for (int round = 0; round < 50; ++round)
        {
            std::shuffle(entries.begin(), entries.end(), random);
            UbEventQueue queue;
            queue.SetWidth(10);
            for (const Entry& entry : entries)
            {
                Push(queue, entry);
            }
            NS_TEST_ASSERT_MSG_EQ(queue.Size(), entries.size(), "an event is missing");
            NS_TEST_ASSERT_MSG_EQ((PopAll(queue) == sorted), true, "wrong order in " << round);
            NS_TEST_ASSERT_MSG_EQ(queue.Size(), 0, "an event is left");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Events beyond the ring of buckets.
 */
class UbEventQueueFarTestCase : public TestCase
{
  public:
    UbEventQueueFarTestCase()
        : TestCase("events beyond the ring leave in their turn and merge with near ones")
    {
    }

  private:
    void DoRun() override
    {
        // buckets of 64 ps, 2^14 of them: the ring ends at 1,048,576 ps
        UbEventQueue queue;
        queue.SetWidth(6);
        const int64_t second = 1'000'000'000'000;
        const std::vector<Entry> far{{second, 2, 0},
                                     {second, 0, 0},
                                     {1'048'576, 0, 0},
                                     {1'048'575, 0, 0},
                                     {second * 1000, 7, 7}};
        for (const Entry& entry : far)
        {
            Push(queue, entry);
        }
        UbEventQueue::Event event;
        NS_TEST_ASSERT_MSG_EQ(queue.NextTime(), 1'048'575, "the last bucket of the ring");
        queue.PopBefore(UB_NEVER, event);
        queue.PopBefore(UB_NEVER, event);
        NS_TEST_ASSERT_MSG_EQ(event.timePs, 1'048'576, "the first time beyond the ring");
        // now within the ring of this time, though the older events of the same instant are not
        Push(queue, {second - 500'000, 9, 9});
        queue.PopBefore(UB_NEVER, event);
        Push(queue, {second, 1, 0});
        Push(queue, {second, 3, 0});
        const std::vector<Entry> expected{{second, 0, 0},
                                          {second, 1, 0},
                                          {second, 2, 0},
                                          {second, 3, 0},
                                          {second * 1000, 7, 7}};
        NS_TEST_ASSERT_MSG_EQ((PopAll(queue) == expected), true, "near and far do not merge");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief A bucket that was opened too early.
 */
class UbEventQueueReopenTestCase : public TestCase
{
  public:
    UbEventQueueReopenTestCase()
        : TestCase("an event earlier than the opened bucket leaves first")
    {
    }

  private:
    void DoRun() override
    {
        for (const int64_t late : {int64_t{100'000}, int64_t{5'000'000'000}}) // in the ring, beyond
        {
            UbEventQueue queue;
            queue.SetWidth(6);
            Push(queue, {10, 0, 0});
            UbEventQueue::Event event;
            queue.PopBefore(UB_NEVER, event);
            Push(queue, {late, 1, 1});
            Push(queue, {late, 0, 2});
            NS_TEST_ASSERT_MSG_EQ(queue.NextTime(), late, "opens the bucket");
            NS_TEST_ASSERT_MSG_EQ(queue.PopBefore(late, event), false, "not before its time");
            Push(queue, {late + 1, 0, 3});
            Push(queue, {10, 5, 4}); // the bucket popped last
            Push(queue, {late - 64, 0, 5});
            NS_TEST_ASSERT_MSG_EQ(queue.NextTime(), 10, "the earlier one is next");
            const std::vector<Entry> expected{{10, 5, 4},
                                              {late - 64, 0, 5},
                                              {late, 0, 2},
                                              {late, 1, 1},
                                              {late + 1, 0, 3}};
            NS_TEST_ASSERT_MSG_EQ((PopAll(queue) == expected), true, "wrong order at " << late);
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Limits of a window.
 */
class UbEventQueueLimitTestCase : public TestCase
{
  public:
    UbEventQueueLimitTestCase()
        : TestCase("no event at the limit or later is taken, and an empty queue says never")
    {
    }

  private:
    void DoRun() override
    {
        UbEventQueue queue;
        queue.SetWidth(10);
        UbEventQueue::Event event;
        NS_TEST_ASSERT_MSG_EQ(queue.NextTime(), UB_NEVER, "empty");
        NS_TEST_ASSERT_MSG_EQ(queue.PopBefore(UB_NEVER, event), false, "empty");
        Push(queue, {7, 1, 2});
        NS_TEST_ASSERT_MSG_EQ(queue.PopBefore(7, event), false, "at the limit");
        NS_TEST_ASSERT_MSG_EQ(queue.Size(), 1, "still there");
        NS_TEST_ASSERT_MSG_EQ(queue.PopBefore(8, event), true, "before the limit");
        NS_TEST_ASSERT_MSG_EQ(event.timePs, 7, "time");
        NS_TEST_ASSERT_MSG_EQ(event.key, 1, "key");
        NS_TEST_ASSERT_MSG_EQ(event.payload, 2, "payload");
        NS_TEST_ASSERT_MSG_EQ(queue.NextTime(), UB_NEVER, "empty again");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Comparison with an ordered set.
 */
class UbEventQueueRandomTestCase : public TestCase
{
  public:
    /**
     * @param [in] widthShift log2 of the width of a bucket.
     * @param [in] nReady Events to keep sorted.
     * @param [in] switches Whether they are kept sorted now and then only.
     */
    UbEventQueueRandomTestCase(uint32_t widthShift, uint32_t nReady, bool switches = false)
        : TestCase("random pushes and pops agree with an ordered set, buckets of 2^" +
                   std::to_string(widthShift) + " ps, " + std::to_string(nReady) + " ready" +
                   (switches ? " now and then" : "")),
          m_widthShift(widthShift),
          m_nReady(nReady),
          m_switches(switches)
    {
    }

  private:
    void DoRun() override
    {
        std::mt19937_64 random(m_widthShift);
        UbEventQueue queue;
        queue.SetWidth(m_widthShift);
        std::multiset<Entry> reference;
        int64_t now = 0;
        UbEventQueue::Event event;
        for (int i = 0; i < 200'000; ++i)
        {
            if (i % 50 == 0)
            {
                const bool isMany = !m_switches || random() % 2 == 0;
                const bool got =
                    queue.KeepReadyIfMany(reference.size() + (isMany ? 0 : 1), m_nReady);
                NS_TEST_ASSERT_MSG_EQ(got, isMany, "whether there are many at step " << i);
            }
            // bursts of pushes, then of pops, so that the queue is sometimes empty
            const bool push = random() % 100 < ((i / 1000) % 2 == 0 ? 70 : 30);
            if (push)
            {
                // nearly all soon, some at once, some far away
                const uint64_t kind = random() % 100;
                const int64_t ahead = kind < 10   ? 0
                                      : kind < 90 ? static_cast<int64_t>(random() % 300'000)
                                                  : static_cast<int64_t>(random() % (1ULL << 40));
                const Entry entry{now + ahead,
                                  static_cast<uint32_t>(random() % 4),
                                  static_cast<uint32_t>(random() % 4)};
                Push(queue, entry);
                reference.insert(entry);
                continue;
            }
            const int64_t limit =
                random() % 4 == 0 ? now + static_cast<int64_t>(random() % 100'000) : UB_NEVER;
            const int64_t next = reference.empty() ? UB_NEVER : std::get<0>(*reference.begin());
            if (random() % 2 == 0)
            {
                NS_TEST_ASSERT_MSG_EQ(queue.NextTime(), next, "next time at step " << i);
            }
            const bool expected = next < limit;
            NS_TEST_ASSERT_MSG_EQ(queue.PopBefore(limit, event), expected, "step " << i);
            if (expected)
            {
                const Entry got{event.timePs, event.key, event.payload};
                NS_TEST_ASSERT_MSG_EQ((got == *reference.begin()), true, "event of step " << i);
                reference.erase(reference.begin());
                now = event.timePs;
            }
            NS_TEST_ASSERT_MSG_EQ(queue.Size(), reference.size(), "size at step " << i);
        }
        const std::vector<Entry> rest(reference.begin(), reference.end());
        NS_TEST_ASSERT_MSG_EQ((PopAll(queue) == rest), true, "the rest");
    }

    uint32_t m_widthShift; //!< log2 of the width of a bucket
    uint32_t m_nReady;     //!< events to keep sorted
    bool m_switches;       //!< now and then only
};

/**
 * @ingroup ub-fabric-test
 * @brief Looking ahead: each event is seen once and before it leaves.
 */
class UbEventQueueAheadTestCase : public TestCase
{
  public:
    UbEventQueueAheadTestCase()
        : TestCase("events are seen once, as far ahead as was asked for")
    {
    }

  private:
    void DoRun() override
    {
        UbEventQueue queue;
        queue.SetWidth(6);
        queue.KeepReady(8);
        for (uint32_t i = 0; i < 1000; ++i)
        {
            queue.Push(100 * i, 0, i); // at most one a bucket
        }
        uint64_t seen = 0;
        uint32_t nVisited = 0;
        UbEventQueue::Event event;
        for (uint32_t i = 0; i < 1000; ++i)
        {
            NS_TEST_ASSERT_MSG_EQ(queue.PopBefore(UB_NEVER, event), true, "event " << i);
            NS_TEST_ASSERT_MSG_EQ(event.payload, i, "order");
            queue.LookAhead(seen, 5, [&](const UbEventQueue::Event& next, uint64_t number) {
                NS_TEST_EXPECT_MSG_EQ(next.payload, ++nVisited, "seen once, in order");
                NS_TEST_EXPECT_MSG_EQ(number, nVisited, "numbered from the start");
            });
            NS_TEST_ASSERT_MSG_EQ(nVisited, std::min(i + 5, 999U), "as far as asked for");
        }
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of the event queue.
 */
class UbEventQueueTestSuite : public TestSuite
{
  public:
    UbEventQueueTestSuite()
        : TestSuite("ub-event-queue", Type::UNIT)
    {
        AddTestCase(new UbEventQueueOrderTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbEventQueueFarTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbEventQueueReopenTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbEventQueueLimitTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbEventQueueAheadTestCase, TestCase::Duration::QUICK);
        for (const uint32_t widthShift : {6U, 10U, 20U})
        {
            for (const uint32_t nReady : {1U, 30U})
            {
                AddTestCase(new UbEventQueueRandomTestCase(widthShift, nReady),
                            TestCase::Duration::QUICK);
            }
            AddTestCase(new UbEventQueueRandomTestCase(widthShift, 30, true),
                        TestCase::Duration::QUICK);
        }
    }
};

static UbEventQueueTestSuite g_ubEventQueueTestSuite; ///< registers the suite
