// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_EVENT_QUEUE_H
#define UB_EVENT_QUEUE_H

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <queue>
#include <vector>

namespace ns3
{

/// A time that never comes, in picoseconds.
constexpr int64_t UB_NEVER = std::numeric_limits<int64_t>::max();

/**
 * @ingroup ub-fabric
 * @brief Typed events of one logical process, in an order that nothing else can change.
 *
 * A ring of buckets, each one power of two of picoseconds wide, with a heap for what lies
 * beyond the ring. Events leave ordered by (time, key, payload), never by the order in
 * which they were pushed: that makes a run independent of how it is cut into windows, and
 * so of who watches it and on how many threads it runs.
 *
 * No event is an object on the heap: 16 bytes in a pool, reused last in, first out so that
 * the cache keeps them.
 */
class UbEventQueue
{
  public:
    /// One event as it leaves the queue.
    struct Event
    {
        int64_t timePs;   //!< when, in picoseconds
        uint32_t key;     //!< kind and place, defined by the process
        uint32_t payload; //!< what, defined by the process
    };

    /**
     * @param [in] memory Memory for what the queue touches all over.
     */
    explicit UbEventQueue(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
        : m_nodes(memory),
          m_heads(N_BUCKETS, NIL, memory),
          m_bits(N_BUCKETS / 64, 0)
    {
    }

    /**
     * Change the width of the buckets; only while the queue is empty.
     * @param [in] widthShift log2 of the width of a bucket in picoseconds.
     */
    void SetWidth(uint32_t widthShift)
    {
        m_shift = widthShift;
        m_base = 0;
        m_openBucket = NONE_OPEN;
    }

    /**
     * Add an event.
     * @param [in] timePs The time, not before the event that was popped last.
     * @param [in] key Kind and place.
     * @param [in] payload What.
     */
    void Push(int64_t timePs, uint32_t key, uint32_t payload)
    {
        const int64_t bucket = timePs >> m_shift;
        ++m_size;
        if (bucket == m_openBucket)
        {
            InsertOpen(Sortable(timePs, key), payload);
            return;
        }
        if (bucket < m_openBucket)
        {
            CloseBucket();
        }
        if (bucket - m_base >= static_cast<int64_t>(N_BUCKETS))
        {
            m_far.push({timePs, key, payload});
            return;
        }
        Link(bucket, Sortable(timePs, key), payload);
    }

    /**
     * @return The time of the next event, UB_NEVER if there is none.
     */
    int64_t NextTime()
    {
        if (m_head == m_open.size() && !OpenNext())
        {
            return UB_NEVER;
        }
        return (m_openBucket << m_shift) + static_cast<int64_t>(m_open[m_head].sortable >> 32);
    }

    /**
     * Take the next event if it lies before a limit.
     * @param [in] limitPs Only an event earlier than this is taken.
     * @param [out] event The event.
     * @return Whether there was one.
     */
    bool PopBefore(int64_t limitPs, Event& event)
    {
        if (m_head == m_open.size() && !OpenNext())
        {
            return false;
        }
        const Open& first = m_open[m_head];
        event.timePs = (m_openBucket << m_shift) + static_cast<int64_t>(first.sortable >> 32);
        if (event.timePs >= limitPs)
        {
            return false;
        }
        event.key = static_cast<uint32_t>(first.sortable);
        event.payload = first.payload;
        m_base = m_openBucket;
        ++m_head;
        --m_size;
        return true;
    }

    /**
     * Take the next event if it has the time and the key of one that has left just now.
     * @param [in] event The event that has left.
     * @param [out] payload What the next one is about.
     * @return Whether there was one.
     */
    bool PopSame(const Event& event, uint32_t& payload)
    {
        // in the same bucket, which is open unless something came since
        if ((m_head == m_open.size() && !OpenNext()) || event.timePs >> m_shift != m_openBucket ||
            m_open[m_head].sortable != Sortable(event.timePs, event.key))
        {
            return false;
        }
        payload = m_open[m_head].payload;
        ++m_head;
        --m_size;
        return true;
    }

    /**
     * Look at an event that leaves soon, if it is at hand; a hint, for prefetching.
     * @param [in] ahead 0 for the next event, 1 for the one after it, and so on.
     * @param [out] key Its key.
     * @param [out] payload Its payload.
     * @return Whether the open bucket holds one.
     */
    bool Peek(uint32_t ahead, uint32_t& key, uint32_t& payload) const
    {
        if (m_head + ahead >= m_open.size())
        {
            return false;
        }
        key = static_cast<uint32_t>(m_open[m_head + ahead].sortable);
        payload = m_open[m_head + ahead].payload;
        return true;
    }

    /**
     * @return Number of events held.
     */
    uint64_t Size() const
    {
        return m_size;
    }

  private:
    static constexpr uint32_t N_BUCKETS = 1U << 14; //!< buckets of the ring
    static constexpr uint32_t NIL = 0xffffffffU;    //!< end of a list
    static constexpr int64_t NONE_OPEN = -1;        //!< no bucket is open

    /// An event in a bucket's list.
    struct Node
    {
        uint64_t sortable; //!< offset in the bucket, then key
        uint32_t payload;  //!< what
        uint32_t next;     //!< next node of the list
    };

    /// An event of the open bucket.
    struct Open
    {
        uint64_t sortable; //!< offset in the bucket, then key
        uint32_t payload;  //!< what

        /**
         * @param [in] other The other event.
         * @return Whether this one leaves first.
         */
        bool operator<(const Open& other) const
        {
            return sortable != other.sortable ? sortable < other.sortable : payload < other.payload;
        }
    };

    /// Order of the heap: earliest on top.
    struct Later
    {
        /**
         * @param [in] a An event.
         * @param [in] b Another event.
         * @return Whether a lies after b.
         */
        bool operator()(const Event& a, const Event& b) const
        {
            return a.timePs > b.timePs;
        }
    };

    /**
     * @param [in] timePs A time.
     * @param [in] key A key.
     * @return Both in one number that sorts within a bucket.
     */
    uint64_t Sortable(int64_t timePs, uint32_t key) const
    {
        const uint64_t offset = static_cast<uint64_t>(timePs) & ((uint64_t{1} << m_shift) - 1);
        return (offset << 32) | key;
    }

    /**
     * Put an event in the list of a bucket of the ring.
     * @param [in] bucket Number of the bucket since time zero.
     * @param [in] sortable Offset and key.
     * @param [in] payload What.
     */
    void Link(int64_t bucket, uint64_t sortable, uint32_t payload)
    {
        uint32_t index = m_free;
        if (index == NIL)
        {
            index = static_cast<uint32_t>(m_nodes.size());
            m_nodes.emplace_back();
        }
        else
        {
            m_free = m_nodes[index].next;
        }
        const uint32_t slot = static_cast<uint32_t>(bucket) & (N_BUCKETS - 1);
        m_nodes[index] = {sortable, payload, m_heads[slot]};
        m_heads[slot] = index;
        m_bits[slot / 64] |= uint64_t{1} << (slot % 64);
        m_summary[slot / 4096] |= uint64_t{1} << (slot / 64 % 64);
    }

    /**
     * Insert into the open bucket, which is sorted and short.
     * @param [in] sortable Offset and key.
     * @param [in] payload What.
     */
    void InsertOpen(uint64_t sortable, uint32_t payload)
    {
        const Open entry{sortable, payload};
        size_t at = m_open.size();
        m_open.emplace_back();
        while (at > m_head && entry < m_open[at - 1])
        {
            m_open[at] = m_open[at - 1];
            --at;
        }
        m_open[at] = entry;
    }

    /// Put the rest of the open bucket back, because something earlier came.
    void CloseBucket()
    {
        for (size_t i = m_head; i < m_open.size(); ++i)
        {
            if (m_openBucket - m_base >= static_cast<int64_t>(N_BUCKETS))
            {
                m_far.push(
                    {(m_openBucket << m_shift) + static_cast<int64_t>(m_open[i].sortable >> 32),
                     static_cast<uint32_t>(m_open[i].sortable),
                     m_open[i].payload});
                continue;
            }
            Link(m_openBucket, m_open[i].sortable, m_open[i].payload);
        }
        m_open.clear();
        m_head = 0;
        m_openBucket = NONE_OPEN;
    }

    /**
     * @return The first bucket of the ring that holds an event, or -1.
     */
    int64_t NextInRing() const
    {
        const uint32_t start = static_cast<uint32_t>(m_base) & (N_BUCKETS - 1);
        uint32_t word = start / 64;
        uint64_t bits = m_bits[word] & (~uint64_t{0} << (start % 64));
        if (bits == 0)
        {
            // the summary says which words are not empty; wrap once around the ring
            constexpr uint32_t nWords = N_BUCKETS / 64;
            uint32_t probe = (word + 1) % nWords;
            bool found = false;
            for (uint32_t i = 0; i <= nWords / 64; ++i)
            {
                const uint64_t summary = m_summary[probe / 64] & (~uint64_t{0} << (probe % 64));
                if (summary != 0)
                {
                    word = probe / 64 * 64 + static_cast<uint32_t>(__builtin_ctzll(summary));
                    found = true;
                    break;
                }
                probe = (probe / 64 + 1) * 64 % nWords;
            }
            if (!found)
            {
                return -1;
            }
            bits = m_bits[word];
        }
        const uint32_t slot = word * 64 + static_cast<uint32_t>(__builtin_ctzll(bits));
        return m_base + ((slot - start) & (N_BUCKETS - 1));
    }

    /**
     * Sort the next bucket for leaving.
     * @return Whether there was one.
     */
    bool OpenNext()
    {
        m_open.clear();
        m_head = 0;
        m_openBucket = NONE_OPEN;
        if (m_size == 0)
        {
            return false;
        }
        const int64_t ring = NextInRing();
        const int64_t far = m_far.empty() ? -1 : m_far.top().timePs >> m_shift;
        const int64_t bucket = ring < 0 ? far : (far < 0 ? ring : std::min(ring, far));
        if (bucket == ring)
        {
            const uint32_t slot = static_cast<uint32_t>(bucket) & (N_BUCKETS - 1);
            for (uint32_t index = m_heads[slot]; index != NIL;)
            {
                Node& node = m_nodes[index];
                m_open.push_back({node.sortable, node.payload});
                const uint32_t next = node.next;
                node.next = m_free;
                m_free = index;
                index = next;
            }
            m_heads[slot] = NIL;
            if ((m_bits[slot / 64] &= ~(uint64_t{1} << (slot % 64))) == 0)
            {
                m_summary[slot / 4096] &= ~(uint64_t{1} << (slot / 64 % 64));
            }
        }
        while (!m_far.empty() && m_far.top().timePs >> m_shift == bucket)
        {
            const Event& event = m_far.top();
            m_open.push_back({Sortable(event.timePs, event.key), event.payload});
            m_far.pop();
        }
        std::sort(m_open.begin(), m_open.end());
        m_openBucket = bucket;
        return true;
    }

    uint32_t m_shift{10};                   //!< log2 of the width of a bucket
    int64_t m_base{0};                      //!< bucket of the event popped last
    int64_t m_openBucket{NONE_OPEN};        //!< the bucket in m_open
    size_t m_head{0};                       //!< next event of m_open
    uint64_t m_size{0};                     //!< events held
    uint32_t m_free{NIL};                   //!< free nodes
    std::vector<Open> m_open;               //!< events of the open bucket, sorted
    std::pmr::vector<Node> m_nodes;         //!< pool of nodes
    std::pmr::vector<uint32_t> m_heads;     //!< list of each bucket
    std::vector<uint64_t> m_bits;           //!< which buckets hold events
    uint64_t m_summary[N_BUCKETS / 4096]{}; //!< which words of m_bits are not zero
    std::priority_queue<Event, std::vector<Event>, Later> m_far; //!< beyond the ring
};

} // namespace ns3

#endif // UB_EVENT_QUEUE_H
